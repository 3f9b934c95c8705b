"""What runs on a rented card runs on its versions: Python 3.12, torch 2.11, Triton 3.6, NVRTC 13.0.

Here without a card, in a virtual environment that is made once and kept in the cache: 5 GB with torch's CUDA build,
which is the target's too.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import HOME
from bench.core.variants import discover
from kernels import cache_dir
from tools import install

PYTHON = "3.12"
TORCH, TRITON = "2.11.0", "3.6.0"
COMPILERS = ("nvidia-cuda-nvrtc>=13.0,<13.1", "nvidia-cuda-runtime>=13.0,<13.1", "cuda-bindings>=13.0,<13.1")
TOOLS = ("nvidia-cuda-cuobjdump>=13,<14", "nvidia-cuda-nvdisasm>=13,<14", "pytest>=8", "pytest-timeout>=2.3")
NEEDED = ("numpy", "pandas", "scipy", "rich", "tiktoken", "tokenizers", "altair", "vl-convert-python", "jinja2")
GPU = ("cupy-cuda13x>=14.2,<15", "nvidia-ml-py", "nvtx", "transformers")
PACKAGES = (*COMPILERS, *TOOLS, *NEEDED, *GPU)
LIMIT_S = 3000

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 600)]


def interpreter() -> Path | None:
    """A Python of the target's version that can make virtual environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [shutil.which(f"python{PYTHON}"), *sorted(pyenv.glob(f"versions/{PYTHON}.*/bin/python{PYTHON}"))]
    if shutil.which("uv"):
        found.append(_output(["uv", "python", "find", PYTHON]))
    works = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    return next((Path(p) for p in map(str, filter(None, found)) if _output([p, "-c", works]) == PYTHON), None)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.fixture(scope="session")
def target() -> Path:
    """The target's python. Skips, with the reason, where there is none to be had."""
    base = interpreter()
    if base is None:
        pytest.skip(f"no Python {PYTHON} here")
    home = cache_dir() / f"target-{PYTHON}-{TORCH}-{TRITON}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # by several processes of a test run
        python, made = home / "bin" / "python", home / "layerbench-made"
        if not made.exists():
            subprocess.run([base, "-m", "venv", "--clear", home], check=True)
        if not made.exists() or made.read_text() != " ".join(PACKAGES):
            _install(python)
            made.write_text(" ".join(PACKAGES))
    return python


def _install(python: Path) -> None:
    def pip(*arguments: str) -> subprocess.CompletedProcess:
        command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)

    index = os.environ.get("TORCH_CPU_INDEX", install.CPU_INDEX)
    quick = ("--retries", "1", "--timeout", "15", "install", "--no-deps", "--index-url", index)
    if pip(*quick, f"torch=={TORCH}+cpu").returncode:
        done = pip("install", f"torch=={TORCH}")
        if done.returncode:
            pytest.skip(f"no torch {TORCH} for Python {PYTHON} to be had: {done.stderr.strip().splitlines()[-1:]}")
    done = pip("install", f"torch=={TORCH}", f"triton=={TRITON}", *PACKAGES)
    if done.returncode:
        pytest.skip(f"the target's packages are not to be had: {done.stderr.strip().splitlines()[-1:]}")


def run(python: Path, *arguments: object) -> str:
    """Run the target's Python in this repository; what it printed. Fails with it where the exit code is not 0."""
    environment = os.environ | {"LAYERBENCH_REPORT": "0", "LAYERBENCH_CACHE": str(python.parents[1] / "cache")}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_the_versions_are_the_targets(target):
    said = run(target, "-c", "import sys, torch, triton; print(sys.version[:4], torch.__version__, triton.__version__)")
    python, torch, triton = said.split()
    assert (python, torch.partition("+")[0], triton) == (PYTHON, TORCH, TRITON)


def test_the_suites_cpu_half_on_a_small_model(target, tmp_path):
    # It ends when it is through; the time is what a busy machine with cold caches may take.
    what = ("--device", "cpu", "--model", "gpt2-tiny", "--layers", "residual", "--minutes", "15", "--batch", "1")
    said = run(target, "-m", "bench.suite", *what, "--out", tmp_path / "suite")
    assert "training step" in said


@pytest.mark.parametrize("files", ["training/test_session_gpu.py", "models/test_step.py", "trial/test_session_gpu.py"])
def test_the_made_up_gpu(target, files):
    run(target, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"tests/bench/{files}")


def test_launches_are_what_the_driver_is_to_be_asked_for(target):
    """Triton's runtime is passed by where a launch is known (kernels/triton/launching.py): what it knows of that."""
    run(target, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "tests/kernels/test_launches.py")


TRITON_VARIANTS = sorted((v.layer, v.name) for v in discover() if v.backend == "triton")


@pytest.mark.parametrize(("layer", "name"), TRITON_VARIANTS, ids=lambda what: what)
def test_a_triton_variant_compiles_in_every_configuration(target, layer, name):
    assert ", 0 with a fault" in run(target, "-m", "bench.static", layer, "--only", name, "--arch", "sm_90a")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_step_of_triton_kernels_in_the_simulator(target, dtype, tmp_path):
    # With cold caches the first step translates and compiles every kernel: minutes, and more on a busy machine.
    what = ("--kernels", "triton", "--dtype", dtype, "--simulate", "--batch", 1, "--seq", 16, "--steps", 1)
    more = ("--time-limit", LIMIT_S, "--out", tmp_path / "run")
    assert "parity: ok over 3 steps" in run(target, "-m", "bench.e2e", "gpt2-tiny", *what, *more)

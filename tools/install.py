"""Set up .venv: the torch build that fits this machine, then this project.

`make setup` runs this file; a second run does nothing. Only the standard library is used, and no syntax newer than
Python 3.8, so that an old Python gets a message and not a traceback. The order matters: torch comes first, because any
other package that needs torch would bring the CUDA build of about 3 GB.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[..., "Done"]  # (command, capture=False)

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
TORCH_FROM, TORCH_BELOW = (2, 11), (2, 14)  # as in pyproject.toml
PYTHON_FROM, PYTHON_TO = (3, 10), (3, 13)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own; $TORCH_CPU_INDEX names another
CUDA_13_DRIVER = 580  # the oldest driver that runs CUDA 13, which torch's default build is made for


class Done(NamedTuple):
    code: int
    output: str = ""


class CannotInstall(Exception):
    """Set-up cannot go on; the message says why and what the ways out are."""


def run(command: list[str], capture: bool = False) -> Done:
    """Run a command to its end; with `capture` its stdout is returned and nothing of it is shown."""
    pipe = subprocess.PIPE if capture else None
    quiet = subprocess.DEVNULL if capture else None
    try:
        done = subprocess.run(command, stdout=pipe, stderr=quiet, text=True)
    except OSError:
        return Done(127)
    return Done(done.returncode, done.stdout or "")


def main(root: Path = ROOT, run: Runner = run) -> int:
    try:
        check_python()
        set_up(root, run)
    except CannotInstall as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full or read-only disk
        print(f"error: {error.filename or root}: {error.strerror}; make room, or set up elsewhere", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run `make setup` again to go on", file=sys.stderr)
        return 130
    return 0


def set_up(root: Path, run: Runner) -> None:
    """Make `root`/.venv complete. Its stamp is written last and removed first: half a set-up never has one."""
    if up_to_date(root):
        return
    with (root / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make bench` and `make test` started at once: the second one waits
        if not up_to_date(root):
            build(root, run)


def build(root: Path, run: Runner) -> None:
    venv = root / ".venv"
    python = str(venv / "bin" / "python")
    stamp(venv).unlink(missing_ok=True)
    driver = nvidia_driver(run)
    make_venv(venv, run)
    begun(venv).touch()
    try:
        install_torch(python, driver, run)
        install_project(python, root, driver, run)
    except CannotInstall:
        begun(venv).unlink()  # pip has failed in order, and what it installed before is good
        raise
    begun(venv).unlink()
    stamp(venv).write_text(key(root))
    say("set-up is complete")


def up_to_date(root: Path) -> bool:
    mark = stamp(root / ".venv")
    return mark.is_file() and mark.read_text() == key(root)


def stamp(venv: Path) -> Path:
    return venv / "layerbench-installed"


def begun(venv: Path) -> Path:
    """There while packages are installed. Left behind by a kill or Ctrl-C: a package may be there by half."""
    return venv / "layerbench-installing"


def key(root: Path) -> str:
    """What a set-up depends on: what is to be installed, where (an editable install names the folder), which Python."""
    venv = root / ".venv"
    parts = [Path(__file__).read_bytes(), (root / "pyproject.toml").read_bytes(), bytes(root)]
    parts += [(venv / "pyvenv.cfg").read_bytes(), os.path.realpath(str(venv / "bin" / "python")).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


# ---- the virtual environment -----------------------------------------------------------------------------------------


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    if version < PYTHON_FROM:
        raise CannotInstall(
            f"this is Python {_dotted(version)}; layerbench needs {_dotted(PYTHON_FROM)} to {_dotted(PYTHON_TO)}.\n"
            "Name another one: make PYTHON=python3.12 setup"
        )
    if version > PYTHON_TO:
        say(f"note: Python {_dotted(version)} is newer than what layerbench is tested with ({_dotted(PYTHON_TO)})")


def make_venv(venv: Path, run: Runner) -> None:
    """Create `venv`, or keep the one that is there, if it works and its last set-up was not cut off."""
    if not begun(venv).exists() and works(venv, run):
        return
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise CannotInstall(
            "this Python cannot make virtual environments: its venv package is missing.\n"
            f"On Debian and Ubuntu: sudo apt-get install python3-venv (or python{_dotted(sys.version_info[:2])}-venv)"
        )
    say(f"{'making' if not venv.exists() else 'making anew'} {venv.name} with Python {_dotted(sys.version_info[:2])}")
    if run([sys.executable, "-m", "venv", "--clear", str(venv)]).code:
        raise CannotInstall(
            "python -m venv failed (its message is above). On Debian and Ubuntu: sudo apt-get install python3-venv"
        )


def works(venv: Path, run: Runner) -> bool:
    """Whether `venv` has pip and was made by the Python that it now runs (a system upgrade can part them)."""
    same_python = (
        "import pip, sys, sysconfig, pathlib; config = pathlib.Path(sys.prefix, 'pyvenv.cfg').read_text();"
        "sys.exit(f'version = {sys.version_info[0]}.{sys.version_info[1]}.' not in config)"
    )
    return run([str(venv / "bin" / "python"), "-c", same_python], capture=True).code == 0


# ---- torch -----------------------------------------------------------------------------------------------------------


def nvidia_driver(run: Runner) -> str:
    """The version of the NVIDIA driver, or ''."""
    done = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture=True)
    lines = done.output.split()
    return lines[0] if done.code == 0 and lines else ""


def install_torch(python: str, driver: str, run: Runner) -> None:
    """Have a torch in the supported range: what is there stays; else the build for this machine."""
    if present := installed_torch(python, run):
        say(f"torch {present} is there and stays")
    elif driver:
        say(f"NVIDIA driver {driver}: installing torch {TORCH} with CUDA (about 3 GB to download)")
        if pip(python, ["install", f"torch=={TORCH}"], run):
            raise CannotInstall(_no_torch())
    else:
        _install_cpu_torch(python, run)
    _notes_on_gpu(installed_torch(python, run), driver)


def _install_cpu_torch(python: str, run: Runner) -> None:
    index = os.environ.get("TORCH_CPU_INDEX", CPU_INDEX)
    say(f"no NVIDIA driver: installing the CPU build of torch {TORCH} (about 200 MB to download)")
    # `+cpu` and --no-deps: no other build can slip in, and no other package is looked for at this index.
    # What torch depends on comes with the project, from the default index.
    quick = ["--retries", "1", "--timeout", "15"]
    if not pip(python, [*quick, "install", "--no-deps", "--index-url", index, f"torch=={TORCH}+cpu"], run):
        return
    say(
        f"note: the CPU build could not be had from {index}.\n"
        "      Taking the default index's build: about 3 GB to download and 5 GB on disk, because it brings\n"
        "      CUDA along; it runs on a CPU as well. Ctrl-C and TORCH_CPU_INDEX=<mirror> make setup avoid that."
    )
    if pip(python, ["--retries", "2", "install", f"torch=={TORCH}"], run):
        raise CannotInstall(_no_torch())


def installed_torch(python: str, run: Runner) -> str:
    """The version of torch in .venv, or '' if there is none in the supported range."""
    done = run([python, "-c", "import importlib.metadata as m; print(m.version('torch'))"], capture=True)
    version = done.output.strip()
    if done.code or not version:
        return ""
    release = tuple(int(part) for part in version.split(".")[:2])
    return version if TORCH_FROM <= release < TORCH_BELOW else ""


def _no_torch() -> str:
    return (
        f"no torch {TORCH} to be had for Python {_dotted(sys.version_info[:2])}. The ways out:\n"
        "  - a mirror of PyTorch's CPU index:  TORCH_CPU_INDEX=<address> make setup\n"
        "  - a folder with a torch wheel:      PIP_FIND_LINKS=<folder> make setup\n"
        f"  - install torch >= {_dotted(TORCH_FROM)}, < {_dotted(TORCH_BELOW)} into .venv yourself, any build:\n"
        "      .venv/bin/python -m pip install <wheel or index options>, then make setup again"
    )


def _notes_on_gpu(torch: str, driver: str) -> None:
    if driver and torch.endswith("+cpu"):
        say(f"note: torch {torch} cannot use the GPU. To choose again: rm -r .venv, then make setup")
    major = driver.split(".")[0]
    if major.isdigit() and int(major) < CUDA_13_DRIVER and not torch.endswith("+cpu"):
        say(
            f"note: driver {driver} is older than {CUDA_13_DRIVER}, which CUDA 13 needs; update it, or install\n"
            "      torch's CUDA 12 build into .venv yourself and run make setup again"
        )


# ---- the project -----------------------------------------------------------------------------------------------------


def install_project(python: str, root: Path, driver: str, run: Runner) -> None:
    extras = "simulate,test,gpu" if driver else "simulate,test"
    say("installing layerbench and what it needs")
    if pip(python, ["install", "--editable", f"{root}[{extras}]"], run):
        raise CannotInstall(
            "pip could not install layerbench's packages (its message is above).\n"
            "Without a network: PIP_FIND_LINKS=<folder of wheels> make setup. What is installed so far is kept."
        )
    if run([python, "-c", "import torch, numpy, scipy, pandas"]).code:
        raise CannotInstall("the packages are there, but do not import (see above); rm -r .venv, then make setup")


def pip(python: str, arguments: list[str], run: Runner) -> int:
    return run([python, "-m", "pip", "--disable-pip-version-check", *arguments]).code


def say(text: str) -> None:
    print(text, flush=True)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(main())

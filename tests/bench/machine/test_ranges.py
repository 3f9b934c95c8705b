"""Ranges are heard by a real NVTX tool: a small injection library in the place of Nsight."""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import timeit
from pathlib import Path

import pytest
import torch

from bench import HOME
from bench.machine import ranges
from bench.machine.ranges import span

TOOL = Path(__file__).with_name("nvtx_injection.c")


def headers() -> Path | None:
    """NVTX's headers: of the wheel nvidia-nvtx, which torch's CUDA builds bring, or of a CUDA toolkit."""
    roots = [Path(sysconfig.get_paths()["purelib"]) / "nvidia" / name for name in ("cu13", "nvtx", "cu12")]
    roots += [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    roots += [Path("/usr/local/cuda")]
    found = [root / "include" for root in roots if (root / "include" / "nvtx3" / "nvToolsExt.h").exists()]
    return found[0] if found else None


@pytest.fixture(scope="module")
def tool(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    include = headers()
    if compiler is None or include is None:
        pytest.skip("needs a C compiler and NVTX's headers (pip install nvidia-nvtx)")
    pytest.importorskip("nvtx")
    library = tmp_path_factory.mktemp("nvtx") / "tool.so"
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{include}", str(TOOL), "-o", str(library)], check=True)
    return library


def heard(tool: Path, log: Path, code: str) -> list[list[str]]:
    """What the tool heard of a Python program: [["domain", "1", "layerbench"], ["push", "1", name], …]."""
    environment = os.environ | {"NVTX_INJECTION64_PATH": str(tool), "NVTX_TEST_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split(" ", 2) for line in log.read_text().splitlines()]


def test_ranges_fire_in_their_domain_nest_and_end_though_the_call_fails(tool, tmp_path):
    code = (
        "from bench.machine.ranges import span\n"
        "with span('step/micro-batch'):\n"
        "    for _ in range(2):\n"
        "        with span('gelu/forward/cuda.naive'):\n"
        "            pass\n"
        "try:\n"
        "    with span('gelu/backward/torch.eager'):\n"
        "        raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "except RuntimeError:\n"
        "    pass\n"
        "with span('after'):\n"
        "    pass\n"
    )
    events = heard(tool, tmp_path / "log", code)
    domain = next(number for kind, number, *name in events if kind == "domain" and name == ["layerbench"])
    ours = [(kind, *name) for kind, number, *name in events if kind != "domain" and number == domain]
    assert ours == [
        ("push", "step/micro-batch"),
        *(2 * [("push", "gelu/forward/cuda.naive"), ("pop",)]),
        ("pop",),
        ("push", "gelu/backward/torch.eager"),
        ("pop",),
        ("push", "after"),
        ("pop",),
    ]


def test_torchs_profiler_gets_ranges_only_while_it_runs():
    with span("unheard/forward/torch.eager"):
        pass
    on_cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=on_cpu) as profiler, span("heard/forward/torch.eager"):
        torch.ones(3) + 1
    names = {event.name for event in profiler.events()}
    assert "heard/forward/torch.eager" in names and "heard/forward/torch.eager" in ranges.recorded
    assert "unheard/forward/torch.eager" not in names | ranges.recorded


def test_without_the_package_a_span_does_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)  # what an import of it then raises is ImportError
    ranges._domain.cache_clear()
    try:
        with span("gelu/forward/cpu.simd"):
            pass
        assert ranges._domain() is None
    finally:
        ranges._domain.cache_clear()


def test_a_span_that_nobody_listens_to_costs_no_more_than_twenty_empty_ones():
    def spanned() -> None:
        with span("gelu/forward/cpu.simd"):
            pass

    def empty() -> None:
        with contextlib.nullcontext():
            pass

    # The smallest of many short loops: other programs only ever add to it.
    cost, least = (min(timeit.repeat(f, number=1000, repeat=50)) for f in (spanned, empty))
    assert cost < 20 * least, f"{cost / least:.1f}"

"""GPU kernels without a GPU: their real PTX is translated to C++ and run on the CPU, with every access checked.

    simulate.install("cuda")           from now on kernels.cuda runs launches on CPU tensors here
    simulate.install("triton")         from now on Triton does
    with simulate.count() as counts:   collect what each launch moves
        …

README.md says how it works, what it finds, and how an instruction is added.
"""

import importlib.util
import platform

from bench.simulate.counts import KernelCount, Traffic
from bench.simulate.launcher import (
    Note,
    Report,
    SimulationError,
    collecting,
    count,
    limit_time,
    run,
    run_ptx,
    take_notes,
)
from bench.simulate.ptx import PtxError
from bench.simulate.use import UnknownInstruction
from kernels import Unavailable, cuda
from kernels.cpu import find_compiler
from kernels.cuda import compiler
from kernels.cuda.tensor_map import tensor_map

__all__ = [
    "KernelCount",
    "Note",
    "PtxError",
    "Report",
    "SimulationError",
    "Traffic",
    "UnknownInstruction",
    "collecting",
    "count",
    "install",
    "limit_time",
    "run",
    "run_ptx",
    "take_notes",
    "tensor_map",
    "unavailable",
]

NEWEST = 90  # compute capability: instructions of later ones are not in the table


def install(backend: str) -> None:
    """Have a backend's kernels on CPU tensors run in the simulator."""
    if backend == "triton":
        from bench.simulate import triton_driver

        triton_driver.install()
    else:
        cuda.simulate_with(run)


def unavailable(backend: str, requires: tuple[str, ...]) -> str | None:
    """Why the simulator cannot run a backend's kernel with these REQUIRES here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the simulator needs an x86-64 processor, not {platform.machine()}"
    for tag in requires:
        if tag.startswith("sm") and tag[2:].rstrip("af").isdigit() and int(tag[2:].rstrip("af")) > NEWEST:
            return f"the simulator knows instructions up to sm{NEWEST}, not {tag}"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'layerbench[simulate]')"
    try:
        find_compiler()
        if backend == "cuda":
            compiler.version()
    except Unavailable as error:
        return str(error)
    return None

"""CUDA kernels without a GPU: the kernel's real PTX is translated to C++ and run on the CPU, with every access checked.

    simulate.install()                 from now on kernels.cuda runs launches on CPU tensors here
    with simulate.count() as counts:   collect what each launch moves
        …

README.md says how it works, what it finds, and how an instruction is added.
"""

import platform

from bench.simulate.counts import KernelCount, Traffic
from bench.simulate.launcher import Report, SimulationError, count, run, run_ptx
from bench.simulate.ptx import PtxError
from bench.simulate.tensor_map import tensor_map
from bench.simulate.translate import UnknownInstruction

__all__ = [
    "KernelCount",
    "PtxError",
    "Report",
    "SimulationError",
    "Traffic",
    "UnknownInstruction",
    "count",
    "install",
    "run",
    "run_ptx",
    "tensor_map",
    "unavailable",
]

NEWEST = 90  # compute capability: instructions of later ones are not in the table


def install() -> None:
    """Have the launcher run CUDA kernels on CPU tensors in the simulator."""
    from kernels import cuda

    cuda.simulate_with(run)


def unavailable(requires: tuple[str, ...]) -> str | None:
    """Why the simulator cannot run a kernel with these REQUIRES here, or None."""
    from kernels import Unavailable
    from kernels.cpu import find_compiler
    from kernels.cuda import compiler

    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the simulator needs an x86-64 processor, not {platform.machine()}"
    for tag in requires:
        if tag.startswith("sm") and tag[2:].rstrip("af").isdigit() and int(tag[2:].rstrip("af")) > NEWEST:
            return f"the simulator knows instructions up to sm{NEWEST}, not {tag}"
    try:
        find_compiler()
        compiler.version()
    except Unavailable as error:
        return str(error)
    return None

"""Runs a launch on the CPU: hands the runtime the translated kernel, its parameters and the memory it may touch."""

import ctypes
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from bench.simulate import build
from bench.simulate.counts import KernelCount, read_counts
from kernels import cuda
from kernels.cuda import Argument, Launch
from kernels.cuda.compiler import compile_source

ARCH = cuda.TARGET
PARAMETER_ALIGN = 64
MAP_32BIT = 0x40  # Linux on x86-64


@dataclass(frozen=True)
class Report:
    """One finding. `kind` is one of a few fixed phrases ("race", "out-of-bounds", …); the message has the lines."""

    kind: str
    message: str


class SimulationError(RuntimeError):
    """The simulator found errors in a kernel; `reports` has them one by one."""

    def __init__(self, kernel: str, reports: Sequence[Report]):
        self.kernel, self.reports = kernel, tuple(reports)
        super().__init__("\n".join([f"{kernel}:", *(f"  {r.message}" for r in reports)]))

    def __reduce__(self):  # workers send it to their parent
        return SimulationError, (self.kernel, self.reports)


class _Range(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("writable", ctypes.c_uint32),
    )


class _Launch(ctypes.Structure):
    """PassedLaunch in runtime.cpp."""

    _fields_ = (
        ("module", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
        ("races", ctypes.c_uint32),
        ("counting", ctypes.c_uint32),
        ("argument_count", ctypes.c_uint32),
        ("range_count", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("argument_bytes", ctypes.POINTER(ctypes.c_uint32)),
        ("ranges", ctypes.POINTER(_Range)),
    )


_one_at_a_time = threading.Lock()  # the runtime is one machine
_seeds = itertools.count()  # each launch has its own order of threads and blocks; the first of a process runs in order
_counts: list[KernelCount] | None = None


def run(launch: Launch) -> None:
    """Compile, translate and run a launch. Raises SimulationError with what was found."""
    source = launch.build
    binary = compile_source(source.source, (source.name,), ARCH, "ptx", source.defines)
    name = f"{source.source.name}: {source.name}"
    run_ptx(
        binary.code.decode(),
        binary.names[source.name],
        launch.grid,
        launch.block,
        launch.shared,
        launch.arguments,
        name=name,
    )


def run_ptx(
    ptx: str,
    symbol: str,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    arguments: Sequence[Argument],
    arch: str = ARCH,
    *,
    seed: int | None = None,
    name: str = "",
) -> None:
    """Run the kernel `symbol` of a PTX module on the CPU tensors that its arguments point to.

    `arch` is what the PTX was made for; `seed` orders threads and blocks (0: in order), by default anew at each launch.
    """
    if reason := unsupported_arch(arch):
        raise SimulationError(name or symbol, [Report("launch", reason)])
    module = build.load_module(ptx)
    seed = next(_seeds) if seed is None else seed
    with _one_at_a_time:
        reports = _launch(module, symbol, grid, block, shared, arguments, seed)
        if _counts is not None:
            _counts.append(read_counts(build.load_runtime(), module, name or symbol, grid, block))
    if reports:
        raise SimulationError(name or symbol, reports)


def unsupported_arch(arch: str) -> str | None:
    """Why PTX for this architecture is not simulated, or None: sm_90a is the newest that is."""
    number = int("".join(c for c in arch if c.isdigit()) or 0)
    return f"the simulator knows instructions up to sm_90a, not {arch}" if number > 90 else None


@contextmanager
def count() -> Iterator[list[KernelCount]]:
    """Collect one KernelCount for each launch inside. Counting is slow, so it is off otherwise."""
    global _counts
    if _counts is not None:
        raise RuntimeError("counts are being collected already")
    _counts = []
    try:
        yield _counts
    finally:
        _counts = None


def _launch(module, symbol, grid, block, shared, arguments: Sequence[Argument], seed: int) -> list[Report]:
    values, keep = _parameters(arguments)
    ranges = list(_ranges(arguments))
    sizes = (ctypes.c_uint32 * max(1, len(arguments)))(*(len(a.value) for a in arguments))
    table = (_Range * max(1, len(ranges)))(*ranges)
    passed = _Launch(
        module=ctypes.addressof(ctypes.c_char.in_dll(module, "sim_module")),
        symbol=symbol.encode(),
        grid=(ctypes.c_uint32 * 3)(*grid),
        block=(ctypes.c_uint32 * 3)(*block),
        dynamic_shared=shared,
        races=os.environ.get("LAYERBENCH_SIMULATE_RACES", "1") != "0",
        counting=_counts is not None,
        argument_count=len(arguments),
        range_count=len(ranges),
        seed=seed,
        arguments=values,
        argument_bytes=sizes,
        ranges=table,
    )
    runtime = build.load_runtime()
    runtime.sim_launch.restype = ctypes.c_char_p
    answer: Callable = runtime.sim_launch
    text = answer(ctypes.byref(passed)).decode(errors="replace")
    del keep
    return [Report(*entry.split("\t", 1)) for entry in text.split("\x1e") if entry]


def _parameters(arguments: Sequence[Argument]):
    """Copies of the arguments' bytes, aligned as parameters are, and what keeps them alive.

    They lie below 4 GiB, because a compiler may keep their addresses in 32 bits (Triton 3.9 does).
    """
    offsets = [0, *itertools.accumulate(-(-len(a.value) // PARAMETER_ALIGN) * PARAMETER_ALIGN for a in arguments)]
    memory = mmap.mmap(-1, max(1, offsets[-1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for offset, argument in zip(offsets, arguments, strict=False):
        memory[offset : offset + len(argument.value)] = argument.value
    return (ctypes.c_void_p * len(offsets))(*(first + offset for offset in offsets)), memory


def _ranges(arguments: Sequence[Argument]) -> Iterator[_Range]:
    """The memory of the tensors that the arguments point to."""
    for argument in arguments:
        for i, tensor in enumerate(argument.tensors):
            if tensor.numel():
                name = f"{argument.name}[{i}]" if len(argument.tensors) > 1 else argument.name
                yield _Range(tensor.data_ptr(), span(tensor), name.encode(), not argument.const)


def span(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()

"""Runs a launch on the CPU: hands the runtime the translated kernel, its parameters and the memory it may touch."""

import ctypes
import itertools
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bench.simulate import build
from bench.simulate.counts import KernelCount, read_counts
from bench.simulate.use import UnknownInstruction
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


# Kinds of findings, the gravest first. What the runtime can go on after, a race, comes last: a real fault elsewhere, or
# the reason that there is one, is not to hide behind it.
GRAVITY = (
    *(
        "timeout",
        "launch",
        "crash",
        "out-of-bounds",
        "misaligned",
        "read-only",
        "uninitialised",
        "unfinished copy",
        "division by zero",
    ),
    *(
        "branch",
        "trap",
        "assertion",
        "deadlock",
        "divergent barrier",
        "barrier",
        "cluster",
        "mbarrier",
        "warp operation",
    ),
    *("wgmma", "tensor map", "proxy", "call", "non-coherent", "race"),
)
BENIGN = ("non-coherent", "race")  # after which a launch, and a case, goes on
MOST_FINDINGS = 50  # of a case


@dataclass(frozen=True)
class Note:
    """What is no error, but worth to be known of a kernel: results that rounding makes `nondeterministic`; threads that
    `returned early`, before a barrier of the others; loads that race, and are `unused`; an `unfenced barrier`, at which
    TMA counts bytes and which it was not shown; an `unfenced register` that wgmma reads; a `swizzle` that begins inside
    of its pattern."""

    kernel: str
    kind: str
    message: str


class SimulationError(RuntimeError):
    """The simulator found errors in a kernel; `reports` has them one by one, the gravest first."""

    def __init__(self, kernel: str, reports: Sequence[Report]):
        self.kernel, self.reports = kernel, tuple(sorted(reports, key=_gravity))
        super().__init__("\n".join([f"{kernel}:", *(f"  {r.message}" for r in reports)]))

    def evidence(self, most: int = 3) -> str:
        """Reports for one line of a table: the first of every kind, then more up to `most`, and how many are left.

        The kernel comes first: a variant may launch several.
        """
        firsts = list({r.kind: r for r in reversed(self.reports)}.values())[::-1]
        told = [*firsts, *(r for r in self.reports if r not in firsts)][: max(most, len(firsts))]
        left = len(self.reports) - len(told)
        parts = [f"{r.kind}: {r.message.removeprefix(r.kind).lstrip(' :,')}" for r in told]
        return f"{self.kernel}: " + "; ".join(parts) + (f"; and {left} more" if left else "")

    def __reduce__(self):  # workers send it to their parent
        return SimulationError, (self.kernel, self.reports)


def _gravity(report: Report) -> int:
    return GRAVITY.index(report.kind) if report.kind in GRAVITY else 0


class _Range(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("writable", ctypes.c_uint32),
        ("parameter", ctypes.c_uint32),
        ("pitch", ctypes.c_uint64),
        ("row", ctypes.c_uint64),
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
        ("cooperative", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32 * 3),
        ("any_cluster", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("time_limit", ctypes.c_double),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("argument_bytes", ctypes.POINTER(ctypes.c_uint32)),
        ("ranges", ctypes.POINTER(_Range)),
    )


_one_at_a_time = threading.Lock()  # the runtime is one machine
_seeds = itertools.count()  # each launch has its own order of threads and blocks; the first of a process runs in order
_counts: list[KernelCount] | None = None
_notes: dict[tuple[str, str], Note] = {}  # by kernel and line
MOST_NOTES = 20
FUSED = (
    "a product fused into the first sum of a reduction does that, and so does a combination that depends on its order; "
    "in Triton, launch with enable_fp_fusion=False"
)


def run(launch: Launch) -> None:
    """Compile, translate and run a launch. Raises SimulationError with what was found."""
    source = launch.build
    with unprofiled():
        binary = compile_source(source.source, (source.name,), ARCH, "ptx", source.defines, source.appended)
    name = f"{source.source.name}: {source.name}"
    run_ptx(
        binary.code.decode(),
        binary.names[source.name],
        launch.grid,
        launch.block,
        launch.shared,
        launch.arguments,
        name=name,
        cooperative=launch.cooperative,
        cluster=launch.cluster,
        any_cluster=True,
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
    cooperative: bool = False,
    cluster: tuple[int, int, int] | None = None,
    any_cluster: bool = False,
) -> None:
    """Run the kernel `symbol` of a PTX module on the CPU tensors that its arguments point to.

    `arch` is what the PTX was made for; `seed` orders threads and blocks (0: in order), by default anew at each launch.
    `cooperative`: all blocks are in flight together, and may wait for each other (grid.sync()). `cluster`: blocks of a
    cluster along each axis, where the kernel does not say it (__cluster_dims__); more than 8 need `any_cluster`, as a
    card needs cudaFuncAttributeNonPortableClusterSizeAllowed.
    """
    if reason := unsupported_arch(arch):
        raise SimulationError(name or symbol, [Report("launch", reason)])
    if wrong := [n for n in (*grid, *block, *(cluster or ())) if not 0 <= n < 2**32]:
        clusters = f", in clusters of {tuple(cluster)}" if cluster else ""
        sizes = f"a grid of {tuple(grid)} blocks of {tuple(block)} threads{clusters}"
        raise SimulationError(name or symbol, [Report("launch", f"{sizes}: {wrong[0]} is no size")])
    with unprofiled():
        module = build.load_module(ptx)
        refused = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(module, "sim_refused")))
        if refused and symbol in (messages := dict(_split(refused))):
            raise UnknownInstruction(messages[symbol])
        seed = next(_seeds) if seed is None else seed
        with _one_at_a_time:
            kind = {"cooperative": cooperative, "cluster": cluster or (0, 0, 0), "any_cluster": any_cluster}
            reports = _launch(module, symbol, grid, block, shared, arguments, kind, seed)
            if _counts is not None:
                _counts.append(read_counts(build.load_runtime(), module, name or symbol, grid, block))
            _keep_notes(name or symbol)
    if not reports:
        return
    if _collected is None:
        raise SimulationError(name or symbol, reports)
    _collected.extend((name or symbol, report) for report in reports)
    if any(report.kind not in BENIGN for report in reports):
        raise _everything(_collected)


@contextmanager
def unprofiled() -> Iterator[None]:
    """A profile function sees nothing of the simulator's own work, which takes up to three times as long under one; no
    code of a variant's runs meanwhile."""
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(before)


_collected: list[tuple[str, Report]] | None = None  # by kernel


@contextmanager
def collecting() -> Iterator[None]:
    """Go on after races: at its end, or at the first finding that a launch cannot go on after, all are raised at once.

    A race may be on values that nobody uses, and what is wrong behind it is to be found too.
    """
    global _collected
    if _collected is not None:
        yield
        return
    found = _collected = []
    try:
        yield
    except SimulationError:
        raise
    except Exception as error:
        if found:
            raise _everything(found) from error
        raise
    finally:
        _collected = None
    if found:
        raise _everything(found)


def _everything(found: list[tuple[str, Report]]) -> SimulationError:
    """Each finding once, of the kernel with the gravest; the others' say whose they are."""
    kernel = min(found, key=lambda f: _gravity(f[1]))[0]
    told = (r if k == kernel else Report(r.kind, f"{r.message}, in {k}") for k, r in found)
    return SimulationError(kernel, sorted(dict.fromkeys(told), key=_gravity)[:MOST_FINDINGS])


_time_limit = 0.0


def limit_time(seconds: float) -> None:
    """From now on a launch that runs for longer ends as a `timeout`; 0: none does."""
    global _time_limit
    _time_limit = seconds


def take_notes() -> tuple[Note, ...]:
    """What this process's launches were found to do since the last call, one of each kernel and line, and forget it."""
    with _one_at_a_time:
        notes = tuple(_notes.values())
        _notes.clear()
    return notes


def _keep_notes(kernel: str) -> None:
    for key, message in _entries(build.load_runtime().sim_remarks):
        kind, _, place = key.partition("\x1f")
        if len(_notes) < MOST_NOTES:
            hint = f" ({FUSED})" if kind == "nondeterministic" else ""
            _notes.setdefault((kernel, kind + place), Note(kernel, kind, message + hint))


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


def _launch(
    module, symbol, grid, block, shared, arguments: Sequence[Argument], kind: dict[str, Any], seed: int
) -> list[Report]:
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
        cooperative=kind["cooperative"],
        cluster=(ctypes.c_uint32 * 3)(*kind["cluster"]),
        any_cluster=kind["any_cluster"],
        seed=seed,
        time_limit=_time_limit,
        arguments=values,
        argument_bytes=sizes,
        ranges=table,
    )
    found = _entries(build.load_runtime().sim_launch, ctypes.byref(passed))
    del keep
    return [Report(kind, message) for kind, message in found]


def _entries(call: Any, *arguments: Any) -> list[tuple[str, str]]:
    """What a function of the runtime tells: pairs of a short text and a long one."""
    call.restype = ctypes.c_char_p
    return _split(call(*arguments))


def _split(entries: bytes) -> list[tuple[str, str]]:
    told = entries.decode(errors="replace")
    return [(first, rest) for first, _, rest in (entry.partition("\t") for entry in told.split("\x1e") if entry)]


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
    for number, argument in enumerate(arguments):
        for i, tensor in enumerate(argument.tensors):
            if tensor.numel():
                name = f"{argument.name}[{i}]" if len(argument.tensors) > 1 else argument.name
                writable = not argument.const
                yield _Range(tensor.data_ptr(), span(tensor), name.encode(), writable, number, *rows(tensor))


def rows(tensor: torch.Tensor) -> tuple[int, int]:
    """Bytes from row to row, and of a row, of a view that leaves out a part of each row; (0, all) of any other.

    A view may leave out more than one distance tells (heads of rows of a part): then its whole span is its own.
    """
    axes = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    row = 1
    while axes and axes[0][0] == row:
        row *= axes.pop(0)[1]
    pitch = axes[0][0] if axes else 0
    if not axes or pitch < row:
        return 0, 2**64 - 1
    for before, after in itertools.pairwise(axes):
        if after[0] != before[0] * before[1]:
            return 0, 2**64 - 1
    return pitch * tensor.element_size(), row * tensor.element_size()


def span(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()

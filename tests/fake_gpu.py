"""A made-up GPU in the place of bench.machine.devices.Cuda, so that what is built on it is tested without a card.

Tensors are on the CPU and are really computed; time is made up. Every ATen operator becomes a kernel that takes as long
as its bytes need, from memory or, where all of them are cached, from the L2 cache. A variant that plays a GPU kernel of
its own computes how it likes inside `with kernel("its_name", seconds)`. The host runs ahead of the device as a real one
does: a launch costs LAUNCH_SECONDS of host time, the device works through its queue, events tell the device's time.

    python -m bench.layer gelu --device tests.fake_gpu:FakeGpu
"""

import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bench.core import deeds
from bench.core.shared import Box
from bench.machine.devices import BACKLOG_SECONDS, BUSY, GRAPH, SPAN, Kernel, Timer, busy_seconds
from bench.machine.facts import GpuState

LAUNCH_SECONDS = 5e-6
KERNEL_SECONDS = 2e-6  # the least a kernel takes
MEMORY_BYTES_PER_S = 1e12
CACHE_BYTES_PER_S = 5e12
CACHE_BYTES = 4 << 20
WATTS = 300.0
MEMORY_BYTES = "LAYERBENCH_FAKE_GPU_BYTES"  # in the environment: more than this in one tensor is out of memory

VIEWS = {
    *("view", "_unsafe_view", "as_strided", "slice", "select", "split", "split_with_sizes", "unbind", "unsqueeze"),
    *("squeeze", "expand", "permute", "transpose", "t", "alias", "detach", "diagonal", "_reshape_alias", "reshape"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "is_same_size"),
}


class FakeGpu:
    name = "tests.fake_gpu:FakeGpu"
    place = "cpu"
    clocks: tuple[str, ...] = (BUSY, SPAN, GRAPH)
    current: "FakeGpu | None" = None  # the one that `kernel` plays on

    def __init__(self) -> None:
        self.host = self.device = 0.0  # seconds: the host's time, and when the device's queue will be empty
        self.ran: list[Kernel] = []
        self.launch_seconds = LAUNCH_SECONDS
        self.node_seconds = 0.0  # of the host, for each node of a graph that it launches
        self.cached: dict[int, int] = {}  # bytes by address, the least recently used first
        self.cached_bytes = 0  # their sum
        self.capturing = False
        self.nodes = 0  # of the graph that is captured
        self.blind = False  # the profiler sees nothing
        self.fault = ""  # what every later call of the driver fails with
        self.allocated = self.peak = 0  # bytes of tensors that operators made
        self.joules = 0.0
        FakeGpu.current = self
        self._mode = _Operators(self)
        self._mode.__enter__()

    def close(self) -> None:
        """Tests that make one in their own process give it back."""
        self._mode.__exit__(None, None, None)
        FakeGpu.current = None

    # --- what the device does ---

    def launch(self, name: str, seconds: float) -> None:
        if self.capturing:
            self.nodes += 1
            return
        self.host += self.launch_seconds
        start = max(self.host, self.device)
        self.device = start + seconds
        self.joules += WATTS * seconds
        self.ran.append(Kernel(name, start, self.device))

    def touch(self, tensors: list[torch.Tensor]) -> float:
        """Seconds that an operation needs to pass over these tensors; afterwards they are cached as far as they fit."""
        seconds = KERNEL_SECONDS
        for t in tensors:
            size, address = t.numel() * t.element_size(), t.data_ptr()
            known = self.cached.pop(address, 0)
            seconds += size / (CACHE_BYTES_PER_S if known >= size else MEMORY_BYTES_PER_S)
            self.cached[address] = size
            self.cached_bytes += size - known
            while self.cached_bytes > CACHE_BYTES:
                self.cached_bytes -= self.cached.pop(next(iter(self.cached)))
        return seconds

    # --- what bench.machine.devices.Device asks for ---

    def synchronize(self) -> None:
        if self.fault:
            raise torch.AcceleratorError(self.fault)
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.host = max(self.host, self.device)

    def timer(self, clock: str, backlog_s: float = BACKLOG_SECONDS) -> "FakeTimer":
        return FakeTimer(self, clock, backlog_s)

    def flush(self) -> None:
        self.cached.clear()
        self.cached_bytes = 0
        self.launch("flush", 2 * CACHE_BYTES / MEMORY_BYTES_PER_S)

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        self.capturing, self.nodes = True, 0
        try:
            calls()
        finally:
            self.capturing = False
        nodes = self.nodes

        def replay() -> None:
            before, self.launch_seconds = self.launch_seconds, 0.0
            self.host += LAUNCH_SECONDS + nodes * self.node_seconds  # the device begins when all is there
            try:
                calls()
            finally:
                self.launch_seconds = before

        return replay

    def memory(self) -> tuple[int, int]:
        return self.allocated, self.peak

    def forget_peak(self) -> None:
        self.peak = self.allocated

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def release_unused(self) -> None:
        pass

    def chip(self) -> tuple[str, int]:
        return "Made-up GPU", 4

    def arch(self) -> str | None:
        return "sm_90a"

    context_bytes = 0  # of a process, before it has a tensor
    shares = ""  # "refused"; or "unmapped", "unmapped later": windows that others cannot open

    def ipc(self) -> "FakeIpc":
        return FakeIpc(self.shares)

    def free_bytes(self) -> int:
        return int(os.environ.get(MEMORY_BYTES, 1 << 30))

    def cache_bytes(self) -> int:
        return CACHE_BYTES

    def energy_joules(self) -> float | None:
        return self.joules

    def state(self) -> GpuState:
        return {"sm_mhz": 1700, "power_w": WATTS, "temperature_c": 50, "throttle_reasons": 0}


class Refusing(FakeGpu):
    shares = "refused"


class Unmapped(FakeGpu):
    shares = "unmapped"


class UnmappedLater(FakeGpu):
    shares = "unmapped later"


class Tight(FakeGpu):
    """So little memory that truth is worked out in pieces, hardly any of it kept, and contestants are parked."""

    context_bytes = 64 << 20

    def __init__(self) -> None:
        super().__init__()
        from bench.trial import cuts, truth

        truth.LARGE = truth.DRAWN_HERE = 0
        truth.YARD, cuts.LEAST = 1 << 13, 1 << 10

    def free_bytes(self) -> int:
        return 64 << 20


class FakeIpc:
    """Windows are boxes, which other processes map to write to. No operators of the device."""

    def __init__(self, shares: str = "") -> None:
        self.shares, self.opened_times = shares, 0

    def window(self, size: int) -> "FakeWindow":
        if self.shares == "refused":
            raise OSError("cuIpcGetMemHandle answers 801")
        return FakeWindow(size)

    @contextlib.contextmanager
    def opened(self, name: str, size: int) -> Iterator[torch.Tensor]:
        self.opened_times += 1
        if self.shares == "unmapped" or (self.shares == "unmapped later" and self.opened_times > 1):
            raise OSError("cuIpcOpenMemHandle_v2 answers 201")
        deeds.MADE.add(os.path.abspath(name))  # a driver's mapping opens no file, which would be noted
        file = os.open(name, os.O_RDWR)
        mapped = mmap.mmap(file, size)
        os.close(file)
        yield torch.frombuffer(mapped, dtype=torch.uint8)
        mapped.close()  # raises BufferError where somebody still has a tensor of it


class FakeWindow(Box):
    def __init__(self, size: int):
        super().__init__(size)
        self.name = self.path


class FakeTimer(Timer):
    def __init__(self, gpu: FakeGpu, clock: str, backlog_s: float):
        super().__init__()
        self.gpu, self.clock, self.backlog_s = gpu, clock, backlog_s

    def __exit__(self, *failed: Any) -> None:
        if failed and failed[0] is None and self.clock == BUSY and not all(self.kernels):
            raise RuntimeError("the profiler saw no kernel in a timed call")

    def start(self) -> None:
        self.gpu.synchronize()
        if self.clock in (SPAN, GRAPH):
            self.gpu.launch("spin", self.backlog_s)
        self._begin, self._first, self._begun = self.gpu.device, len(self.gpu.ran), self.gpu.host

    def stop(self) -> None:
        kernels = [] if self.gpu.blind else self.gpu.ran[self._first :]
        if self.clock in (SPAN, GRAPH):
            self.host_seconds.append(self.gpu.host - self._begun)
            self.seconds.append(self.gpu.device - self._begin)
        else:
            self.kernels.append(kernels)
            self.seconds.append(busy_seconds(kernels))
        self.gpu.synchronize()


class _Operators(TorchDispatchMode):
    """ATen's operators as kernels of the device."""

    def __init__(self, gpu: FakeGpu):
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler first: two seconds of each process

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if name == "_local_scalar_dense":
            self.gpu.synchronize()
        result = func(*args, **(kwargs or {}))
        tensors = _tensors([*args, *(kwargs or {}).values(), result])
        limit = os.environ.get(MEMORY_BYTES)
        if limit and any(t.numel() * t.element_size() > int(limit) for t in tensors):
            raise torch.OutOfMemoryError(f"CUDA out of memory: {name} on the made-up GPU")
        for made in _made(tensors, [*args, *(kwargs or {}).values()]):
            size = made.numel() * made.element_size()
            self.gpu.allocate(size)
            weakref.finalize(made, self.gpu.allocate, -size)
        if name not in VIEWS and name != "_local_scalar_dense":
            self.gpu.launch(f"void at::native::{name}_kernel", self.gpu.touch(tensors))
        return result


def _tensors(values: list[Any]) -> list[torch.Tensor]:
    """The tensors in arguments and results, each once."""
    found: dict[int, torch.Tensor] = {}
    for value in values:
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, torch.Tensor):
                found[one.data_ptr()] = one
    return list(found.values())


def _made(tensors: list[torch.Tensor], given: list[Any]) -> list[torch.Tensor]:
    """Of an operator's tensors those that none of its arguments shares memory with."""
    known = {t.untyped_storage().data_ptr() for t in _tensors(given)}
    return [t for t in tensors if t.untyped_storage().data_ptr() not in known]


@contextlib.contextmanager
def kernel(name: str, seconds: float = KERNEL_SECONDS) -> Iterator[None]:
    """What is computed inside counts as one such kernel, and is not seen as calls of ATen; where no made-up GPU is in
    use, nothing counts."""
    with _disable_current_modes():
        yield
    if FakeGpu.current is not None:
        FakeGpu.current.launch(name, seconds)


def fault(message: str = "CUDA error: an illegal memory access was encountered") -> None:
    """A kernel does something that the driver never forgives: this process can use the GPU no more."""
    if FakeGpu.current is not None:
        FakeGpu.current.fault = message

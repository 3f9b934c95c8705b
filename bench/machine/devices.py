"""What the harness asks of the device a variant runs on: its clocks, caches, memory and graphs.

This is the one seam between the harness and a GPU. All that touches a CUDA device, and cannot be tried without one,
is in `Cuda`, and thin; what is built on it is tested with a made-up device in its place (tests/fake_gpu.py).

    device = open_device("cuda")       "cpu", "cuda", "cuda:1"; or "package.module:Class" of a class like `Cuda`
    timer = device.timer("busy")       one of device.clocks, of which the first is the one that rows are ranked by
    with timer:
        for …:
            timer.start(); call(); timer.stop()
    timer.seconds, timer.kernels       of each call

Clocks of a GPU, side by side on each row:

    busy    the union of the intervals in which the call's kernels ran, by the profiler (CUPTI), call by call
    span    CUDA events before and after the call, behind a backlog, so that short kernels do not wait for the host
    graph   a CUDA graph of many calls replayed, a call's share of it: what launching costs in a captured step
"""

import contextlib
import ctypes
import functools
import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bench.cli import CANNOT_RUN, USAGE, CannotGoOn
from bench.core.shared import unwritten
from bench.machine import facts
from kernels.cuda.gpu import arch_of, name_of

PERF_COUNTER_NS, PROCESS_TIME_NS = time.perf_counter_ns, time.process_time_ns
THREAD_TIME_NS, CLOCK_TIME, LIST = time.thread_time_ns, time.clock_gettime, os.listdir
BUSY, SPAN, GRAPH, WALL = "busy", "span", "graph", "perf_counter"
# Of spinning before an event span, so that what is timed is queued before it begins: at least this, and so many times
# what the host was seen to need for a call, but no more than a bound.
BACKLOG_SECONDS, BACKLOG_FACTOR, MOST_BACKLOG_SECONDS = 200e-6, 1.5, 20e-3
MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc's
FLUSH = 2  # times the last-level cache
IDLE_SECONDS, IDLE_SHARE = 100e-6, 0.2  # after a call, until the host has seen that the GPU is idle
Event = dict[str, Any]  # of a Chrome trace: times in microseconds


@dataclass(frozen=True)
class Kernel:
    """One kernel, copy or fill that a device ran: seconds on the profiler's clock."""

    name: str
    start: float
    end: float


def busy_seconds(kernels: list[Kernel]) -> float:
    """The length of the union of the kernels' intervals: what overlaps counts once, gaps do not count."""
    total, reached = 0.0, -math.inf
    for k in sorted(kernels, key=lambda k: k.start):
        total += max(0.0, k.end - max(k.start, reached))
        reached = max(reached, k.end)
    return total


class Timer:
    """A session of one clock. `seconds` (of each call) and `kernels` are complete after the `with` block."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []  # of all threads of the process; empty where the clock does not tell
        self.kernels: list[list[Kernel]] = []  # of each call; empty where the clock does not see them
        self.host_seconds: list[float] = []  # of each span: until the host had launched all, the spin not awaited
        self.at_once: Callable[[], object] | None = None  # called as soon as a call is over, where nothing else waits

    def __enter__(self) -> "Timer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class Device(Protocol):
    name: str  # as given to open_device
    place: str  # where torch puts tensors
    clocks: tuple[str, ...]

    def synchronize(self) -> None: ...
    def timer(self, clock: str, backlog_s: float = BACKLOG_SECONDS) -> Timer:
        """backlog_s: of spinning before a span, see `backlog_of`."""

    def flush(self) -> None:
        """Empty the last-level cache: nothing the next call reads is in it, nothing it must write back."""

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        """Record the launches of `calls` as a graph; what is returned replays it. Raises what the capture raises."""

    def memory(self) -> tuple[int, int]:
        """Bytes of tensors: (now, at most since `forget_peak`)."""

    def forget_peak(self) -> None: ...
    def release_unused(self) -> None:
        """Give memory that this process holds for later, and does not use, back to the device."""

    def free_bytes(self) -> int: ...
    def chip(self) -> tuple[str, int]:
        """Its maker's name for it, and its cores (of a GPU: streaming multiprocessors)."""

    def arch(self) -> str | None:
        """What kernels for it are compiled for: "sm_90a"; None on a CPU."""

    def cache_bytes(self) -> int: ...
    def energy_joules(self) -> float | None:
        """A counter that only rises; None where it cannot be read."""

    def state(self) -> facts.GpuState:
        """sm_mhz, power_w, temperature_c, throttle_reasons; empty on a CPU."""


@functools.cache
def open_device(name: str) -> Device:
    """The device of this name, once a process. CannotGoOn where it is not there, or the name makes no sense."""
    check_device(name)
    if name == "cpu":
        return Cpu()
    if name.partition(":")[0] == "cuda":
        return Cuda(name)
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def is_gpu(name: str) -> bool:
    return name != "cpu"


def is_made_up(name: str) -> bool:
    """Whether the device is a class of somebody's, whose kernels are as made up as itself."""
    return is_gpu(name) and name.partition(":")[0] != "cuda"


def clocks_of(name: str) -> tuple[str, ...]:
    """The clocks that the device of this name has, without opening it: a process that only asks needs no context."""
    return (BUSY, SPAN, GRAPH) if is_gpu(name) else (WALL,)


def check_device(name: str) -> None:
    """CannotGoOn where `open_device` would raise it; nothing is opened, and no CUDA context made."""
    if name.partition(":")[0] == "cuda":
        _cuda_index(name)
    elif name != "cpu":
        module, colon, attribute = name.partition(":")
        if not colon:
            raise CannotGoOn(f"unknown device {name!r} (known: cpu, cuda, cuda:N)", USAGE)
        try:
            getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise CannotGoOn(f"device {name!r}: {error}", USAGE) from error


def chip_name(name: str) -> str:
    """What the maker calls the device of this name; no CUDA context is made."""
    return name_of(_cuda_index(name)) if name.partition(":")[0] == "cuda" else open_device(name).chip()[0]


# --- the CPU ---


class WallTimer(Timer):
    """The monotonic clock, and the CPU time of all threads. It ticks in tens of nanoseconds."""

    def start(self) -> None:
        settle_threads_clocks()
        self._cpu, self._wall = PROCESS_TIME_NS(), PERF_COUNTER_NS()

    def stop(self) -> None:
        wall, mine = PERF_COUNTER_NS(), THREAD_TIME_NS()
        if self.at_once:
            self.at_once()
        settle_threads_clocks()
        looking = THREAD_TIME_NS() - mine  # before the process's clock: what passes between them is not taken off
        cpu = PROCESS_TIME_NS() - looking
        self.seconds.append((wall - self._wall) / 1e9)
        self.cpu_seconds.append((cpu - self._cpu) / 1e9)


def settle_threads_clocks() -> None:
    """Have Linux count what this process's threads have used up to now. In the time of a process that of threads which
    run on other cores is as old as the last tick of their clock, up to 10 ms: what they spun before a call would be
    the call's. To ask for a thread's own time counts it (a clock of a thread: linux/posix-timers_types.h)."""
    for task in LIST("/proc/self/task") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):  # it has ended
            CLOCK_TIME(~int(task) << 3 | 6)


class Cpu:
    __slots__ = ()  # one for all of a process, and anybody can name it: nobody puts a timer of their own there
    name = place = "cpu"
    clocks: tuple[str, ...] = (WALL,)

    def synchronize(self) -> None:
        pass

    def timer(self, clock: str, backlog_s: float = BACKLOG_SECONDS) -> Timer:
        return WallTimer()

    def flush(self) -> None:
        _flush_buffer("cpu", self.cache_bytes()).sum()

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        raise NotImplementedError("a CPU has no graphs")

    def memory(self) -> tuple[int, int]:
        raise NotImplementedError("tensors on a CPU are not counted")

    def forget_peak(self) -> None:
        pass

    def release_unused(self) -> None:
        """What glibc keeps of what tensors gave back."""
        if MALLOC_TRIM:
            MALLOC_TRIM(0)

    def chip(self) -> tuple[str, int]:
        return facts.cpu()["model"] or facts.cpu()["architecture"], facts.usable_cores()

    def arch(self) -> str | None:
        return None

    def free_bytes(self) -> int:
        return facts.available_bytes() or 0

    def cache_bytes(self) -> int:
        return facts.last_level_cache_bytes()

    def energy_joules(self) -> float | None:
        return None

    def state(self) -> facts.GpuState:
        return {}


# Of all processes that are forked once this is imported: each page is made once, not once for each contestant.
PAGE = 4096
READ_BY_ALL = unwritten(FLUSH * facts.last_level_cache_bytes())


def make_pages() -> None:
    """Of what empties a CPU's caches, for all processes: a tenth of a second and more of one core's time."""
    for part in READ_BY_ALL.split(PAGE << 14):  # a read of each page, too few for torch to wake its threads
        part[::PAGE].sum()


@functools.cache
def _flush_buffer(device: str, cache_bytes: int) -> torch.Tensor:
    if device == "cpu" and FLUSH * cache_bytes <= len(READ_BY_ALL):
        return READ_BY_ALL[: FLUSH * cache_bytes // 4 * 4].view(torch.float32)
    return torch.ones(math.ceil(FLUSH * cache_bytes / 4), device=device)


# --- CUDA ---


class SpanTimer(Timer):
    """Events on the current stream, recorded behind a spin of the GPU, so that the call is queued before it starts.

    A third one is recorded once all streams are done: what a call left to another stream is part of its span.
    """

    def __init__(self, device: "Cuda", backlog_s: float = BACKLOG_SECONDS):
        super().__init__()
        self.device = device
        self._cycles = int(backlog_s * device.cycles_per_s)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event, torch.cuda.Event]] = []

    def __exit__(self, *_: object) -> None:
        self.device.synchronize()
        for start, end, idle in self._events:
            self.seconds.append(span_seconds(start.elapsed_time(end) / 1e3, start.elapsed_time(idle) / 1e3))

    def start(self) -> None:
        one, two, three = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        self._events.append((one, two, three))
        torch.cuda._sleep(self._cycles)
        one.record()
        self._begun = PERF_COUNTER_NS()

    def stop(self) -> None:
        self.host_seconds.append((PERF_COUNTER_NS() - self._begun) / 1e9)
        _, end, idle = self._events[-1]
        end.record()
        self.device.synchronize()
        idle.record()


def backlog_of(host_s: float) -> float:
    """Seconds of spinning before the span of a call that the host needs so many seconds to launch."""
    return min(max(BACKLOG_SECONDS, BACKLOG_FACTOR * host_s), MOST_BACKLOG_SECONDS)


def queued(spans: list[float], host_s: list[float], backlog_s: float) -> list[float]:
    """Of the spans of a few calls those that were launched before they could begin: in the others the GPU waited for a
    host that was late. All of them where none was: a call that waits for the GPU itself never can be."""
    return [span for span, host in zip(spans, host_s, strict=True) if host <= backlog_s] or spans


def span_seconds(to_end: float, to_idle: float) -> float:
    """A call's span: until its own stream was done, or all were, where that is later by more than the host needs to
    see that they are done."""
    return to_idle if to_idle - to_end > max(IDLE_SECONDS, IDLE_SHARE * to_end) else to_end


RANGE = "layerbench call {}"


class BusyTimer(Timer):
    """Kernels by the PyTorch profiler (Kineto on CUPTI), each attributed to the call that launched it.

    By autograd's end of it: `torch.profiler.profile` imports torch's compiler before it starts, which takes two seconds
    of each process (torch 2.11 to 2.13), and every variant has one.
    """

    def __init__(self, device: "Cuda"):
        super().__init__()
        self.device = device
        self._calls = 0

    def __enter__(self) -> Timer:
        self._profiler = torch.autograd.profiler.profile(use_device="cuda", use_kineto=True)
        self._profiler.__enter__()
        return self

    def __exit__(self, *failed: object) -> None:
        self._profiler.__exit__(*failed)
        if failed and failed[0] is not None:
            return
        with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
            file = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(file))
            self.kernels = kernels_by_call(json.loads(file.read_text())["traceEvents"], self._calls)
        self.seconds = [busy_seconds(found) for found in self.kernels]

    def start(self) -> None:
        self.device.synchronize()
        self._range = torch.profiler.record_function(RANGE.format(self._calls))
        self._range.__enter__()

    def stop(self) -> None:
        self.device.synchronize()  # inside the range: it holds all that the call did
        self._range.__exit__(None, None, None)
        self._calls += 1


ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")


def kernels_by_call(trace: list[Event], calls: int) -> list[list[Kernel]]:
    """A Chrome trace's device activities by the numbered range that launched them (see BusyTimer).

    The correlation id leads from an activity to its launch, and the launch lies inside a range. An activity whose
    launch was not recorded is put where it ran: a call's range ends after the device is idle. Raises RuntimeError for
    a call that no device activity belongs to: a time of nothing is no time.
    """
    prefix = RANGE.format("")
    ranges: dict[int, tuple[float, float]] = {}
    launches: dict[int, float] = {}
    for e in trace:
        if e.get("cat") in LAUNCHES and "correlation" in e.get("args", {}):
            launches[e["args"]["correlation"]] = e["ts"]
        elif e.get("cat") == "user_annotation" and e["name"].startswith(prefix):
            ranges[int(e["name"].removeprefix(prefix))] = e["ts"], e["ts"] + e["dur"]
    found: list[list[Kernel]] = [[] for _ in range(calls)]
    for e in trace:
        if e.get("cat") not in ON_DEVICE:
            continue
        correlation = e["args"].get("correlation")
        when = launches[correlation] if correlation in launches else e["ts"]
        number = next((n for n, (start, end) in ranges.items() if start <= when <= end), None)
        if number is not None:  # else it is the harness's own work between calls
            found[number].append(Kernel(e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6))
    if missing := [n for n, kernels in enumerate(found) if not kernels]:
        raise RuntimeError(
            f"the profiler saw no kernel in {len(missing)} of {calls} timed calls: another profiler may hold CUPTI, "
            "or its records were lost"
        )
    return found


def _cuda_index(name: str) -> int:
    """The number in cuda:N. CannotGoOn where there is no such GPU."""
    if not torch.cuda.is_available():
        raise CannotGoOn(
            f"--device {name}: torch {torch.__version__} finds no NVIDIA GPU (python -m bench.doctor says why)",
            CANNOT_RUN,
        )
    number = name.partition(":")[2] or "0"
    if not number.isdigit():
        raise CannotGoOn(f"unknown device {name!r} (known: cpu, cuda, cuda:N)", USAGE)
    if int(number) >= torch.cuda.device_count():
        raise CannotGoOn(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs", CANNOT_RUN)
    return int(number)


class Cuda:
    """An NVIDIA GPU through torch. Everything runs on torch's current stream."""

    __slots__ = ("cycles_per_s", "index", "name", "place", "properties", "uuid")  # as of Cpu
    clocks: tuple[str, ...] = (BUSY, SPAN, GRAPH)

    def __init__(self, name: str):
        index = _cuda_index(name)
        keep_fp32()
        keep_cupti()
        torch.cuda.set_device(index)
        self.name = self.place = name
        self.index = index
        self.properties = torch.cuda.get_device_properties(index)
        self.uuid = str(getattr(self.properties, "uuid", ""))
        # In kHz; a version of torch may leave it out, or a driver not tell it: 2 GHz is near enough for a backlog.
        self.cycles_per_s = (getattr(self.properties, "clock_rate", 0) or 2_000_000) * 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.index)

    def timer(self, clock: str, backlog_s: float = BACKLOG_SECONDS) -> Timer:
        return BusyTimer(self) if clock == BUSY else SpanTimer(self, backlog_s)

    def flush(self) -> None:
        """Read twice the L2 cache, after lines that were pinned in it are let go."""
        _release_persisting_l2()
        torch.sum(_flush_buffer(self.place, self.cache_bytes()), dim=0, out=_sum_into(self.place))

    def capture(self, calls: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls()
        return graph.replay

    def memory(self) -> tuple[int, int]:
        return torch.cuda.memory_allocated(self.index), torch.cuda.max_memory_allocated(self.index)

    def forget_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.index)

    def release_unused(self) -> None:
        torch.cuda.empty_cache()

    def chip(self) -> tuple[str, int]:
        return self.properties.name, self.properties.multi_processor_count

    def arch(self) -> str | None:
        return arch_of(self.index)

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.index)[0]

    def cache_bytes(self) -> int:
        return self.properties.L2_cache_size

    def energy_joules(self) -> float | None:
        return facts.gpu_energy_joules(self.uuid, self.index)

    def state(self) -> facts.GpuState:
        return facts.gpu_state(self.uuid, self.index)


@functools.cache
def _sum_into(device: str) -> torch.Tensor:
    return torch.empty((), device=device)


TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # 1: libraries take TF32 for fp32, whatever they are told; 0: never


def keep_fp32() -> None:
    """Products in fp32 are of fp32, until somebody who says so asks for less. An image may have TF32 asked for in the
    environment of all programs (NVIDIA's for PyTorch: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE): the yard of fp32 would then be
    a thousand times too long, and the baseline another one. Before a library of NVIDIA's is used."""
    if os.environ.get(TF32_OVERRIDE) != "0":
        os.environ.pop(TF32_OVERRIDE, None)
    if torch.get_float32_matmul_precision() != "highest":
        torch.set_float32_matmul_precision("highest")


TEARDOWN_CUPTI = "TEARDOWN_CUPTI"


def keep_cupti() -> None:
    """One session of the profiler comes after the other. An image may have the profiler let go of CUPTI after
    each, which a thread does at some later call: the next session has begun by then, and sees no kernel."""
    os.environ.pop(TEARDOWN_CUPTI, None)


PERSISTING_L2_CACHE_SIZE = 6  # CUlimit


def _release_persisting_l2() -> None:
    """No room for persisting lines, and none left: they would survive any flush."""
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuCtxSetLimit(PERSISTING_L2_CACHE_SIZE, ctypes.c_size_t(0))
        driver.cuCtxResetPersistingL2Cache()

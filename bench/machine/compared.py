"""What processes that are compared have in common, both ends: threads, a clock, a peak of memory, how they end."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from bench.cli import FAILED, TIMED_OUT, CannotGoOn
from bench.core import process
from bench.machine import facts
from bench.machine.devices import SPAN, Device, is_gpu
from bench.machine.facts import usable_cores

COMPILE_THREADS = 8


def thread_variables(threads: int, device: str) -> dict[str, str]:
    """Of a process's environment, before it loads a library: each OpenMP library reads OMP_NUM_THREADS when it is
    loaded. On a GPU Inductor compiles on several cores: its pool sleeps while steps are timed, and takes no part in
    what the GPU does then."""
    found = {"OMP_NUM_THREADS": str(threads)}
    if is_gpu(device):
        found["TORCHINDUCTOR_COMPILE_THREADS"] = str(min(COMPILE_THREADS, usable_cores()))
    return found


RESTED_S, AWAKE = 0.3, 0.5  # who was left alone for so long, and wanted so much more of a core than others did


@dataclass
class Rest:
    """What a process wants of the cores while others have their turns. wanted: seconds so far; runtimes: of OpenMP
    that it has."""

    wanted: Callable[[], float]
    runtimes: Callable[[], int]
    left: tuple[float, float] | None = None  # seconds that it wanted a core, and the time, after its last turn
    rested_s: float = 0.0  # from a turn to its next one, and how long it wanted a core meanwhile
    awake_s: float = 0.0

    def begin(self) -> None:
        """Its turn is over."""
        self.left = self.wanted(), time.monotonic()

    def end(self) -> None:
        """Its next one begins."""
        if self.left:
            self.awake_s += self.wanted() - self.left[0]
            self.rested_s += time.monotonic() - self.left[1]
        self.left = None

    @property
    def awake(self) -> float:
        """The share of a core that it wanted."""
        return self.awake_s / self.rested_s if self.rested_s else 0.0

    def evidence(self, others: "list[Rest]") -> str:
        """That it was at work, as the others here were not; "" for nothing. LLVM's OpenMP waits for the next call by
        turning, 200 ms long: who has more runtimes than the others is not blamed."""
        spins = self.runtimes() > max([1, *(o.runtimes() for o in others)])
        if spins or self.rested_s < RESTED_S or self.awake <= max((o.awake for o in others), default=0.0) + AWAKE:
            return ""
        return f"its process wanted {self.awake:.0%} of a core while others had their turns"


def rest_of(pid: int) -> Rest:
    """Of a process."""
    return Rest(partial(facts.wanted_s, pid), partial(facts.openmp_runtimes, pid))


class Job(Protocol):
    """What they do: on this device, by so many threads."""

    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...


class Lost(CannotGoOn):
    """A contestant's process died, does not answer, or a command of its failed; `status` says which, as a record
    does."""

    def __init__(self, said: str, status: str = process.CRASH, code: int = FAILED):
        super().__init__(said, TIMED_OUT if status == process.TIMEOUT else FAILED if status == process.CRASH else code)
        self.status = status


class Contestant(process.Process):
    """The parent's end: a process whose commands are a room's methods. All are forks of one interpreter with these
    variables, which has imported PyTorch and computed nothing."""

    def __init__(self, name: str, room: process.RoomOrName, job: Job, *arguments: object, limit: float):
        self.name = name
        threads = thread_variables(job.threads, job.device)
        module = room.partition(":")[0] if isinstance(room, str) else room.__module__
        super().__init__(room, job, *arguments, limit=limit, environment=threads, preload=module)


class Room(process.Room):
    """What each can be asked, whatever it does. clock: of the device, that steps are timed by."""

    def __init__(self, device: Device, on_gpu: bool, threads: int):
        torch.set_num_threads(threads)
        self.device, self.on_gpu = device, on_gpu
        self.clock = SPAN if SPAN in device.clocks else device.clocks[0]

    def chip(self) -> str:
        return self.device.chip()[0]

    def forget_peak(self) -> None:
        """Start a new peak of this process's memory, so that compiling and measuring are not counted."""
        self.device.forget_peak()
        with suppress(OSError):  # where this is not allowed, the peak includes set-up
            Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """Peak resident memory of this process (on a GPU: of the device's tensors) since `forget_peak`."""
        if self.on_gpu:
            return self.device.memory()[1]
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(s for s in lines if s.startswith("VmHWM")).split()[1]) * 1024

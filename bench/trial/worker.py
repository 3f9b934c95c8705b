"""The parent's end of a variant's process: a crash, a hang or a flipped flag costs one row."""

import os
import threading
from contextlib import suppress

from bench.core import process
from bench.core.process import Process
from bench.core.variants import Variant
from bench.trial import ROOMS
from bench.trial.room import Setting

# Workers are forked from a server that has imported what they need, and so torch, once.
process.SERVER.set_forkserver_preload(list(ROOMS))


class Worker(Process):
    """A process whose commands are the methods of `Room`. `variant` None: only its device is asked."""

    died = "the process died with {how}"
    timed_out = "no answer within {limit:g} s (--time-limit); stopped"

    def __init__(self, variant: Variant | None, setting: Setting):
        super().__init__("bench.trial.room:Room", variant, setting, limit=setting.time_limit)
        self.variant, self.setting = variant, setting

    def waited_ns(self) -> int:
        """Nanoseconds that this thread and the process have been ready to run without a core to run on: what a busy
        machine takes, and nobody's fault. 0 where the system does not count it (Linux: schedstat)."""
        return sum(_waited_ns(task) for task in (threading.get_native_id(), self.process.pid))

    def wanted_s(self) -> float:
        """Seconds that all of the process's threads together have run, or been ready to run without a core to run on:
        on a busy machine, too, who does nothing wants nothing. 0 where the system does not count it."""
        with suppress(OSError):
            return sum(sum(_scheduled_ns(task)) for task in os.listdir(f"/proc/{self.process.pid}/task")) / 1e9
        return 0.0


def _waited_ns(task: int) -> int:
    return _scheduled_ns(task)[1]


def _scheduled_ns(task: int | str) -> tuple[int, int]:
    """Nanoseconds that a thread ran, and that it waited for a core (Linux: schedstat)."""
    with suppress(OSError, ValueError, IndexError):
        file = os.open(f"/proc/{task}/schedstat", os.O_RDONLY)
        try:
            ran, waited = os.read(file, 100).split()[:2]
            return int(ran), int(waited)
        finally:
            os.close(file)
    return 0, 0

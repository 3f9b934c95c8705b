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

    def used_s(self) -> float:
        """CPU seconds of all of the process's threads so far, in ticks of 10 ms; 0 where the system does not tell."""
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{self.process.pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # its name may hold anything
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime
        return 0.0


def _waited_ns(task: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        file = os.open(f"/proc/{task}/schedstat", os.O_RDONLY)
        try:
            return int(os.read(file, 100).split()[1])
        finally:
            os.close(file)
    return 0

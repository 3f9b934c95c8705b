"""The parent's end of a variant's process: a crash, a hang or a flipped flag costs one row."""

import threading

from bench.core import process
from bench.core.process import Process
from bench.core.variants import Variant
from bench.machine import facts
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
        """As facts.wanted_s, of the process."""
        return facts.wanted_s(self.process.pid)


def _waited_ns(task: int) -> int:
    return facts.scheduled_ns(task)[1]

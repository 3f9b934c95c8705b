"""The parent's end of a variant's process, or of the judge's: a crash, a hang or a flipped flag costs one row."""

from bench.core import process
from bench.core.process import Process
from bench.core.variants import Variant
from bench.trial import room
from bench.trial.room import Room, Setting

# Workers are forked from a server that has imported the room, and so torch, once.
process.SERVER.set_forkserver_preload([room.__name__])


class Worker(Process):
    """A process whose commands are the methods of `Room`. `variant` None makes it a judge."""

    died = "the process died with {how}"
    timed_out = "no answer within {limit:g} s (--time-limit); stopped"

    def __init__(self, variant: Variant | None, setting: Setting):
        super().__init__(Room, variant, setting, limit=setting.time_limit)
        self.setting = setting

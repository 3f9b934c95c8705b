"""The parent's end of a process for each contestant of `bench.generate`."""

from typing import Any

from bench.cli import FAILED, TIMED_OUT, CannotGoOn
from bench.core.process import CRASH, TIMEOUT, Process, ProcessFailed
from bench.generation.plan import Job
from bench.generation.rooms import Room
from bench.machine.compared import thread_variables

SETUP_LIMIT_S = 900.0  # compiling, measuring, reading files


class Lost(CannotGoOn):
    """A contestant's process died, does not answer, or a command of its failed; `status` says which, as a record
    does."""

    def __init__(self, said: str, status: str, code: int):
        super().__init__(said, code)
        self.status = status


class Contestant(Process):
    """A process whose commands are a room's methods."""

    def __init__(self, name: str, room: type[Room], job: Job, *arguments: object, limit: float):
        self.name = name
        threads = thread_variables(job.threads, job.device)
        super().__init__(room, job, *arguments, limit=limit, environment=threads, preload=room.__module__)

    def set_up(self, command: str, **arguments: object) -> Any:
        """As `ask`, of what may compile."""
        return self.ask(command, limit=SETUP_LIMIT_S, **arguments)

    def raised(self, failure: ProcessFailed) -> CannotGoOn:
        code = TIMED_OUT if failure.status == TIMEOUT else FAILED if failure.status == CRASH else failure.code
        return Lost(f"{self.name}: {failure.evidence}", failure.status, code)

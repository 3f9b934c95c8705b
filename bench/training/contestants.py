"""The parent's end of a process for each contestant of `bench.e2e`: our step, PyTorch's, and the judge of the band.

    with Contestant("torch.compile", TorchRoom, job, "compile") as c:
        c.ask("load", perturbed=None)
        c.ask("step", batches=…, lr=3e-4)      {"loss": …, "norm": …, "wall_s": …, "cpu_s": …}

The parent sends a command and waits for its answer; meanwhile every other process sleeps in a read. So threads, pools
and peak memory are each contestant's own. A process that dies or hangs ends the run with a message that says which.
"""

from typing import Any

from bench.cli import CannotGoOn
from bench.core.process import CRASH, OUT_OF_MEMORY, TIMEOUT, ProcessFailed, RoomOrName
from bench.machine import compared
from bench.machine.compared import Lost
from bench.machine.devices import is_gpu
from bench.training.deadline import Deadline
from bench.training.rooms import Job

STEP_LIMIT_S = 600.0  # one step; the naive kernels need a minute or two for gpt2-124m
SETUP_LIMIT_S = 900.0  # compiling, measuring
TEARDOWN_LIMIT_S = 30.0


class OutOfMemory(CannotGoOn):
    """A contestant did not fit into the GPU's memory."""


class Contestant(compared.Contestant):
    """Each command raises CannotGoOn with its name and what happened; Lost where the process died or hangs."""

    def __init__(self, name: str, room: RoomOrName, job: Job, *arguments: object):
        self.on_gpu = is_gpu(job.device)
        self.deadline: Deadline | None = None  # of the run: no answer is waited for any longer
        super().__init__(name, room, job, *arguments, limit=STEP_LIMIT_S)

    def answer(self, limit: float | None = None) -> Any:
        limit = self.limit if limit is None else limit
        return super().answer(self.deadline.limit(limit) if self.deadline else limit)

    def raised(self, failure: ProcessFailed) -> CannotGoOn:
        said = f"{self.name}: {failure.evidence}"
        if failure.status == OUT_OF_MEMORY and self.on_gpu:
            return OutOfMemory(said)
        if failure.status in (TIMEOUT, CRASH):
            hint = " (SIGKILL is often the system running out of memory)" if said.endswith("SIGKILL") else ""
            return Lost(said + hint, failure.status)
        return CannotGoOn(said, failure.code)

    def close(self) -> None:
        """As any process's; the next one finds the GPU's memory free."""
        super().close()
        self.process.join(TEARDOWN_LIMIT_S)

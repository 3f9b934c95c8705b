"""PyTorch's own training beside ours: the same batches, the same start, the same learning rates; and the parity gate.

The baseline is one of `bench.e2e`'s, in a process of its own, and takes each step after ours. The gate is `bench.e2e`'s
too (bench/training/gate.py), over the whole run so far: the band is what PyTorch's runs, in fp32 and from parameters
moved by a unit in the last place, span. It is looked at every --parity-every steps, for it costs three more trainings.

Of several ranks each has its own part of an FSDP2 baseline beside it; rank 0 alone judges, and sees all batches.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from bench.models.memory import Memory
from bench.trainer import FSDP
from bench.trainer.plan import Plan
from bench.trainer.ranks import Ranks
from bench.training.field import Field, baseline
from bench.training.gate import Excess, Gate, must_be_finite
from bench.training.rooms import NumpyBatch, StepDone

FSDP_ROOM = "bench.trainer.fsdp:FsdpRoom"  # imported where it is wanted: that takes two thirds of a second
PERTURBED = (0, 1)  # seeds of PyTorch's runs at the working dtype, besides the baseline

Batches = list[NumpyBatch]


class Beside:
    """Use as a context manager: it ends the processes. Raises CannotGoOn with the name of whom something befell."""

    def __init__(self, plan: Plan, mode: str, first: Batches, lr: float, ranks: Ranks):
        self.plan, self.first, self.lr, self.ranks = plan, first, lr, ranks
        self.entrant = baseline(mode)
        if mode == FSDP:
            place = (ranks.rank, ranks.ranks, ranks.first(_free_address() if ranks.main else ""))
            self.entrant = replace(self.entrant, room=FSDP_ROOM, arguments=place)
        self.recipe = ""  # what the baseline is, in words
        self.ours: list[Mapping[str, Any]] = []
        self.theirs: list[Mapping[str, Any]] = []
        self.runs: list[list[Mapping[str, Any]]] = []  # the judge's: fp32, and perturbed ones
        self.unjudged: list[tuple[Batches, float]] = []
        self._stack = ExitStack()

    def __enter__(self) -> "Beside":
        self.field = self._stack.enter_context(Field(self.plan.race, []))
        contestant = self.field.enter(self.entrant)
        limit = self.plan.race.compile_limit
        self.recipe = contestant.ask("warm", batches=self.first, lr=self.lr, limit=limit)
        if not self.ranks.main:
            return self
        self.field.judge.ask("begin", perturbed=list(PERTURBED), limit=self.plan.race.setup_limit)
        self.runs = [[] for _ in (None, *PERTURBED)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def step(self, batches: Batches, lr: float, loss: float, norm: float, memory: Memory) -> StepDone:
        """The baseline's step, after ours, whose gradients are still in memory."""
        first = not self.ours and self.ranks.ranks == 1  # of several, nobody has whole gradients
        norms = {n: _norm(g) for n, g in memory.grads.items()} if first else {}
        self.ours.append(dict(loss=loss, norm=norm, norms=norms))
        limit = self.plan.race.time_limit
        contestant = self.field.contestants[self.entrant]
        done: StepDone = contestant.ask("step", batches=batches, lr=lr, details=first, limit=limit)
        self.theirs.append(done)
        must_be_finite(self.entrant.name, self.theirs, lr)
        together = [batch for part in self.ranks.everyones(batches) for batch in part]
        if self.ranks.main:
            self.unjudged.append((together, lr))
        self.field.park(self.entrant)
        return done

    def parity(self) -> "Parity":
        """How near ours is to PyTorch's runs, over all steps so far."""
        judge, limit = self.field.judge, self.plan.race.time_limit * (1 + len(PERTURBED))
        for batches, lr in self.unjudged:
            told = judge.ask("go_on", steps=[batches], lr=lr, limit=limit)
            for run, new in zip(self.runs, told, strict=True):
                run += new
        self.unjudged.clear()
        gate = Gate.measured(self.runs[0], [*self.runs[1:], self.theirs])
        return Parity(gate.worst(self.ours, "loss"), gate.worst(self.ours, "norm"), gate.excesses(self.ours))


class Parity:
    """The largest distances from PyTorch's run, in units of the band, and all that lie outside."""

    def __init__(self, loss: float, norm: float, excesses: list[Excess]):
        self.loss, self.norm, self.excesses = loss, norm, excesses

    def __str__(self) -> str:
        if self.excesses:
            return f"parity with PyTorch failed: {self.excesses[0]}"
        return f"parity with PyTorch: loss at most {self.loss:.2f} of the band, norm {self.norm:.2f}"


def _free_address() -> str:
    """Where the baselines of all ranks can meet: this machine, by the name that the ranks met at, and a free port."""
    with closing(socket.socket()) as found:
        found.bind(("", 0))
        return f"{os.environ.get('MASTER_ADDR') or socket.gethostname()}:{found.getsockname()[1]}"


def _norm(tensor: torch.Tensor) -> float:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()

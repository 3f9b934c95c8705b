"""What the ranks of the tests do: they train a small GPT-2 from one set of batches, each its share."""

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.checkpoints.state import State
from bench.core.variants import discover
from bench.models.program import program, step_calls
from bench.models.step import Step
from bench.trainer import loop, peers
from bench.trainer.peers import RankLost
from bench.trainer.ranks import Ranks
from bench.trainer.reduction import Pairwise, Reduction
from reference.models import MODELS
from reference.models.gpt2 import GPT2, init_parameters
from tests import commands
from tests.bench.trainer import runs

SMALL = GPT2("small", L=2, NH=2, C=40, max_t=24, v=300)  # sizes that divide into nothing
UNCLIPPED = replace(SMALL, recipe=replace(SMALL.recipe, max_norm=1e6))
B, T, LR = 2, 16, 1e-2
BUCKET_BYTES = 20_000  # a dozen buckets
STEPS = 3


@dataclass(frozen=True)
class Job:
    dtype: str = "fp32"
    optimizer: str = "replicated"
    micro_batches: int = 4  # of all ranks
    masters: bool = True
    bucket_bytes: int = BUCKET_BYTES
    model: GPT2 = SMALL
    ordered: bool | None = None


def build(job: Job, ranks: int = 1) -> Step:
    modules = {v.layer: v.load() for v in discover() if v.name == "torch.eager"}
    calls = step_calls(job.model, B, T, job.dtype)
    made = program(job.model, B, T, job.dtype, masters=job.masters)
    return Step(made, {id: modules[id.layer] for id in calls}, job.micro_batches // ranks, seed=7, ranks=ranks)


def batches(job: Job, step: int, rank: int = 0, ranks: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's of a step's micro-batches."""
    share = job.micro_batches // ranks
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, SMALL.v, (job.micro_batches, B, T + 1), generator=generator)
    return [(t[:, :-1], t[:, 1:]) for t in tokens[rank * share : (rank + 1) * share]]


def reduced(ranks: Ranks, job: Job) -> Step:
    step = build(job, ranks.ranks)
    ranks.reduce(step, job.optimizer, job.bucket_bytes, job.ordered)
    return step


def train(ranks: Ranks, job: Job, steps: range = range(STEPS), start: State | None = None) -> dict[str, Any]:
    """Losses and norms, the parameters after each step, and the state at the end."""
    step = reduced(ranks, job)
    step.load_state(start) if start else step.load(init_parameters(job.model, 0))
    done, parameters = [], []
    for i in steps:
        done.append(step.run(batches(job, i, ranks.rank, ranks.ranks), LR))
        parameters.append(step.memory.flat_params.clone())
    return dict(
        losses=[loss for loss, _ in done],
        norms=[norm for _, norm in done],
        parameters=parameters,
        state=step.state(steps.stop, {}),
        bytes=step.bytes,
    )


def sums(ranks: Ranks, job: Job) -> dict[str, Any]:
    """The gradients after one step's reduction, and what this rank had to add."""
    step = reduced(ranks, job)
    step.load(init_parameters(job.model, 0))
    given = batches(job, 0, ranks.rank, ranks.ranks)
    step.measure(given)
    mem = step.memory
    plain = build(job, ranks.ranks)
    plain.load(init_parameters(job.model, 0))
    plain.gradients(given)
    return dict(reduced=mem.flat_grads.clone(), own=plain.memory.flat_grads.clone())


def arrives_meanwhile(ranks: Ranks, job: Job) -> bool:
    """Whether the first bucket's terms arrive while a call of the backward pass runs, and nobody waits for them."""
    step = build(job, ranks.ranks)
    exchange = Reduction(ranks, step, False, job.bucket_bytes).exchange
    assert isinstance(exchange, Pairwise)
    step.load(init_parameters(job.model, 0))
    exchange.received.fill_(torch.nan)
    seen = []

    def call() -> None:
        assert exchange.arriving
        bucket, _ = exchange.arriving
        own = bucket.part(ranks.rank)
        terms = exchange.received[bucket.number % 2, 1 - ranks.rank, : own.stop - own.start]
        until = time.monotonic() + 30
        while terms.isnan().any() and time.monotonic() < until:
            time.sleep(0.01)
        seen.append(not terms.isnan().any())

    begun = next(i for i, bound in enumerate(step.last) if isinstance(bound[0], functools.partial))
    assert begun < len(step.last_calls) - 1
    step.last.insert(begun + 1, (call, (), {}))
    step.run(batches(job, 0, ranks.rank, ranks.ranks), LR)
    return seen == [True]


def one_is_not_finite(ranks: Ranks, job: Job) -> dict[str, Any]:
    """A step in which the last rank's gradients are infinite, between two that are well."""
    step = reduced(ranks, job)
    step.load(init_parameters(job.model, 0))
    step.run(batches(job, 0, ranks.rank, ranks.ranks), LR)
    before = step.memory.flat_params.clone()
    good = step.memory.dlosses.clone()
    if ranks.rank == ranks.ranks - 1:
        step.memory.dlosses[0, 0] = torch.inf
    _, norm = step.run(batches(job, 1, ranks.rank, ranks.ranks), LR)
    kept = torch.equal(step.memory.flat_params, before)
    step.memory.dlosses.copy_(good)
    step.run(batches(job, 2, ranks.rank, ranks.ranks), LR)
    return dict(norm=norm, kept=kept, updates=step.memory.step.item(), parameters=step.memory.flat_params.clone())


def first_bad(ranks: Ranks, job: Job) -> str:
    """One rank alone looks for what is not finite; then all go on."""
    step = reduced(ranks, job)
    step.load(init_parameters(job.model, 0))
    given = batches(job, 0, ranks.rank, ranks.ranks)
    found = "?"
    if ranks.rank == 1:
        step.memory.dlosses[0, 0] = torch.inf
        found = step.first_not_finite(given)
        step.memory.dlosses.fill_(step.memory.dlosses[1, 1])
    step.run(given, LR)
    ranks.agree(step.memory.flat_params, "parameters")
    return found


def words(ranks: Ranks) -> dict[str, Any]:
    """What is said besides gradients."""
    r = ranks.rank
    try:
        ranks.agree(torch.full((4,), -1.0 - (r == 2)), "the parameters")
        drifted = ""
    except Exception as error:
        drifted = str(error)
    ranks.agree(torch.arange(16, dtype=torch.bfloat16), "the same")
    return dict(
        all=ranks.all(r / 3),
        mean=ranks.mean(0.1 * r),
        any=(ranks.any(r == 1), ranks.any(False)),
        first=ranks.first({"of": r}),
        main=ranks.main,
        drifted=drifted,
    )


def share_of_cores(cpus: dict[int, list[int]]) -> int:
    """threads of this rank, if it may use these cores."""
    mine = cpus[int(os.environ["RANK"])]
    peers.usable_cpus = lambda: mine
    ranks = Ranks.join()
    ranks.leave()
    assert ranks.machines == 1
    return ranks.threads


def command(*words: object, asked: tuple[int, int] = (-1, -1)) -> commands.Done:
    """`bench.train` on this rank. asked: (rank, step) to be sent SIGTERM in that step."""
    MODELS[runs.SMALL.name] = runs.SMALL
    one = loop.Training._one

    def _one(self: loop.Training, ahead: Any, clock: Any) -> None:
        if (self.ranks.rank, self.done) == asked:
            os.kill(os.getpid(), signal.SIGTERM)
        one(self, ahead, clock)

    loop.Training._one = _one  # type: ignore[method-assign]
    return commands.run("train", *words)


def by_srun() -> list[float]:
    """Every rank's number, by ranks that Slurm has started."""
    told = os.environ
    slurm = dict(SLURM_PROCID=told["RANK"], SLURM_STEP_NUM_TASKS=told["WORLD_SIZE"], SLURM_LOCALID=told["LOCAL_RANK"])
    ranks = Ranks.join({**slurm, "MASTER_ADDR": told["MASTER_ADDR"], "MASTER_PORT": told["MASTER_PORT"]})
    found = ranks.all(ranks.rank)
    ranks.leave()
    return found


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs() -> None:
    time.sleep(60)


def breaks() -> None:
    raise ZeroDivisionError("a kernel's")


class Late(Ranks):
    """A rank that asks whether it is to speak when rank 0, which keeps what it asks, has long spoken."""

    def _speaks(self) -> bool:
        time.sleep(0.5)
        return super()._speaks()


def is_lost(job: Job, how: Callable[[], None], patience: int = peers.PATIENCE_S) -> dict[str, Any]:
    """Something befalls the last rank in the middle of its second step; what the others make of it."""
    peers.PATIENCE_S = patience
    ranks = Ranks.join()
    step = reduced(ranks, job)
    step.load(init_parameters(job.model, 0))
    step.run(batches(job, 0, ranks.rank, ranks.ranks), LR)
    if ranks.rank == 1:
        ranks.__class__ = Late
    if ranks.rank == ranks.ranks - 1:
        step.last.insert(len(step.last) // 2, (how, (), {}))
    try:
        with ranks.one_voice():
            step.run(batches(job, 1, ranks.rank, ranks.ranks), LR)
    except SystemExit as silent:
        return dict(lost=str(silent.__cause__), code=silent.code, spoke=False)
    except RankLost as lost:
        return dict(lost=str(lost), code=lost.code, spoke=True)
    return {}

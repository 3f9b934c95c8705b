"""What the ranks of the tests do: they train a small GPT-2 from one set of batches, each its share."""

from typing import Any

import torch

from bench.checkpoints.state import State
from bench.core.variants import discover
from bench.models.program import program, step_calls
from bench.models.step import Step
from bench.trainer.ranks import Ranks
from reference.models.gpt2 import GPT2, init_parameters

SMALL = GPT2("small", L=2, NH=2, C=40, max_t=24, v=300)  # sizes that divide into nothing
B, T, LR, MICRO_BATCHES = 2, 16, 1e-2, 4
BUCKET_BYTES = 20_000  # some dozens of buckets


def build(ranks: int, dtype: str, accumulation: int, masters: bool = True, kernels: str = "torch.eager") -> Step:
    modules = {v.layer: v.load() for v in discover() if v.name == kernels}
    calls = step_calls(SMALL, B, T, dtype)
    made = program(SMALL, B, T, dtype, masters=masters)
    return Step(made, {id: modules[id.layer] for id in calls}, accumulation, seed=7, ranks=ranks)


def batches(step: int, rank: int, ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's of the MICRO_BATCHES of a step."""
    share = MICRO_BATCHES // ranks
    tokens = torch.randint(0, SMALL.v, (MICRO_BATCHES, B, T + 1), generator=torch.Generator().manual_seed(step))
    return [(t[:, :-1], t[:, 1:]) for t in tokens[rank * share : (rank + 1) * share]]


def train(
    ranks: Ranks, optimizer: str, dtype: str, steps: range, start: State | None = None, masters: bool = True
) -> dict[str, Any]:
    """Losses, norms and a digest of the parameters after each step, and the state at the end."""
    step = build(ranks.ranks, dtype, MICRO_BATCHES // ranks.ranks, masters)
    ranks.reduce(step, optimizer, BUCKET_BYTES)
    step.load_state(start) if start else step.load(init_parameters(SMALL, 0))
    done = [step.run(batches(i, ranks.rank, ranks.ranks), LR) for i in steps]
    ranks.agree(step.memory.flat_params, "parameters")
    losses, norms = zip(*done, strict=True)
    state = step.state(steps.stop, {})
    return dict(losses=losses, norms=norms, params=step.memory.flat_params.clone(), state=state, bytes=step.bytes)

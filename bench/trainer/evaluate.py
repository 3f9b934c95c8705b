"""How good a model is that is being trained: the loss of validation shards, and questions with four endings."""

from collections.abc import Callable
from pathlib import Path

import torch

from bench.models.step import Step
from bench.text import evaluation
from bench.text.epochs import in_order
from bench.trainer.ranks import Ranks
from bench.training.rooms import NumpyBatch

Check = Callable[[], None]  # called before each batch; what it raises ends the evaluation


def _go_on() -> None:
    pass


Told = list[tuple[NumpyBatch, float]]  # the mean loss of each batch


def validation(step: Step, shards: list[Path], limit: int, ranks: Ranks, check: Check = _go_on) -> tuple[float, Told]:
    """The mean loss, in nats a token, of the first batches of validation shards, `limit` of each rank; and what it
    comes from."""
    mem, told = step.memory, list[tuple[NumpyBatch, float]]()
    for x, y in in_order(shards, mem.B, mem.T, limit, ranks.rank, ranks.ranks, step.model.v):
        check()
        loss = step.evaluate((torch.from_numpy(x), torch.from_numpy(y))).mean(dtype=torch.float64)
        told.append(((x, y), loss.item()))
    losses = [loss for _, loss in told]
    total, batches = ranks.mean(sum(losses)), ranks.mean(len(losses))  # some ranks may have one batch fewer
    return total / batches, told


def hellaswag(step: Step, examples: list[evaluation.Example], ranks: Ranks, check: Check = _go_on) -> tuple[int, int]:
    """(questions that were answered right, all questions)."""
    mem, tally = step.memory, evaluation.Tally(examples)
    for batch in evaluation.batches(examples, mem.B, mem.T, ranks.rank, ranks.ranks):
        check()
        losses = step.evaluate((torch.from_numpy(batch.x), torch.from_numpy(batch.y)))
        tally.add(batch, losses.cpu().numpy())
    right, asked = (round(ranks.mean(n) * ranks.ranks) for n in (tally.right, tally.asked))
    return right, asked

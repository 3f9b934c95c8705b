"""How good a model is that is being trained: the loss of validation shards, and questions with four endings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bench.models.step import Step
from bench.text import evaluation
from bench.text.epochs import in_order
from bench.trainer.ranks import Ranks
from bench.training.rooms import NumpyBatch

Check = Callable[[], None]  # called before each batch; what it raises ends the evaluation


def _go_on() -> None:
    pass


@dataclass(frozen=True)
class Told:
    """What was told of a batch: mean losses, and of each target whose mean it is in, or -1; (B, T)."""

    batch: NumpyBatch
    groups: np.ndarray
    means: list[float]


Tellings = list[Callable[[], Told]]  # of each batch; made when somebody asks, for there may be thousands


def validation(
    step: Step, shards: list[Path], limit: int, ranks: Ranks, check: Check = _go_on
) -> tuple[float, Tellings]:
    """The mean loss, in nats a token, of the first batches of validation shards, `limit` of each rank; and what it
    comes from."""
    mem, losses, told = step.memory, list[float](), Tellings()
    for x, y in in_order(shards, mem.B, mem.T, limit, ranks.rank, ranks.ranks, step.model.v):
        check()
        loss = step.evaluate((torch.from_numpy(x), torch.from_numpy(y))).mean(dtype=torch.float64)
        losses.append(loss.item())
        told.append(partial(_of_all, (x, y), losses[-1]))
    total, batches = ranks.mean(sum(losses)), ranks.mean(len(losses))  # some ranks may have one batch fewer
    return total / batches, told


def hellaswag(
    step: Step, examples: list[evaluation.Example], ranks: Ranks, check: Check = _go_on
) -> tuple[int, int, Tellings]:
    """(questions that were answered right, all questions, what that comes from)."""
    mem, tally, told = step.memory, evaluation.Tally(examples), Tellings()
    batches = partial(evaluation.batches, examples, mem.B, mem.T, ranks.rank, ranks.ranks)
    for number, batch in enumerate(batches()):
        check()
        losses = step.evaluate((torch.from_numpy(batch.x), torch.from_numpy(batch.y)))
        means = tally.add(batch, losses.cpu().numpy())
        if means:
            told.append(partial(_of_endings, batches, number, means))
    right, asked = (round(ranks.mean(n) * ranks.ranks) for n in (tally.right, tally.asked))
    return right, asked, told


def _of_all(batch: NumpyBatch, loss: float) -> Told:
    return Told(batch, np.zeros_like(batch[1]), [loss])


def _of_endings(batches: Callable[[], Iterator[evaluation.Asked]], number: int, means: list[float]) -> Told:
    batch = next(islice(batches(), number, None))
    rows = np.arange(len(batch.mask))[:, None]
    return Told((batch.x, batch.y), np.where(batch.mask, rows, -1), means)

"""A single step of ours, judged by itself: plain PyTorch takes it again from the same parameters and batches.

Nothing adds up from step to step, as it does in the band of the parity gate, so this is as sharp after a million steps
as at the first. The truth is the step in a precision above the working one, the yard what PyTorch is off by in our
step's formats. Held to them are the loss, each parameter's gradient as a whole, and its largest error in one element:

    ours - truth  <=  SLACK * max(PyTorch's - truth, usual * truth) + FLOOR * all gradients

in Euclidean norms, `usual` being the median over parameters of PyTorch's relative error: in one of them it may be right
by luck. The norm that ours took of its gradients is held to an exact sum over these.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bench.training.gate import FLOOR, SLACK, Excess

PIECE = 1 << 17  # elements that are compared at once
ONE = 8.0  # times PyTorch's largest error in an element, as in the check of single layers (trial/accuracy.py)
ABOVE = {"fp32": torch.float64, "bf16": torch.float32, "fp16": torch.float32}  # the truth's, by the working dtype


@dataclass(frozen=True)
class Taken:
    """A step up to its gradients: the loss of each target, (targets,), and gradients by name, on the CPU."""

    losses: torch.Tensor
    grads: Mapping[str, torch.Tensor]


def excesses(
    loss: float, norm: float, grads: Mapping[str, torch.Tensor], truth: Taken, rough: Taken, step: int
) -> list[Excess]:
    """What is wrong of a step of ours, before its update; the worst first. rough: PyTorch's in our step's formats."""
    return _beyond(
        [_loss(loss, truth.losses, rough.losses), _norm(norm, grads), *_gradients(grads, truth, rough)], step
    )


def excesses_of_means(
    means: Sequence[float], groups: torch.Tensor, truth: torch.Tensor, rough: torch.Tensor, step: int
) -> list[Excess]:
    """What is wrong of mean losses that an evaluation tells. groups: of each target, whose mean it is in, or -1;
    (targets,) as truth and rough, PyTorch's at the working dtype."""
    if len(means) == 1:
        whole = groups == 0
        return _beyond([_loss(means[0], truth[whole], rough[whole])], step)
    # Of an ending's few targets PyTorch's error may be small by luck, and ours large: the yard is that of all.
    usual = (rough - truth).square().mean().sqrt().item()
    found = []
    for number, ours in enumerate(means):
        centre = truth[groups == number].mean().item()
        found.append((f"the mean loss of ending {number}", ours, centre, ONE * usual + FLOOR * abs(centre)))
    return _beyond(found, step)


def _beyond(found: "list[Held]", step: int) -> list[Excess]:
    made = [Excess(what, step, ours, centre, band, "the truth's") for what, ours, centre, band in found]
    return sorted((e for e in made if not abs(e.ours - e.centre) <= e.band), key=lambda e: -e.times)


Held = tuple[str, float, float, float]  # what it is, ours, the truth's, by how much they may differ


def _loss(loss: float, truth: torch.Tensor, rough: torch.Tensor) -> Held:
    """Of each target's. A mean's error is at most the mean error, which is not small by luck."""
    centre = truth.mean().item()
    yard = (rough - truth).abs().mean().item()
    return "loss", loss, centre, SLACK * yard + FLOOR * abs(centre)


def _norm(norm: float, grads: Mapping[str, torch.Tensor]) -> Held:
    exact = math.hypot(*map(length, grads.values()))
    theirs = torch.stack([torch.linalg.vector_norm(g.float()) for g in grads.values()]).norm().item()
    return "gradient norm", norm, exact, SLACK * abs(theirs - exact) + FLOOR * exact


def _gradients(grads: Mapping[str, torch.Tensor], truth: Taken, rough: Taken) -> Iterator[Held]:
    sizes = {name: length(t) for name, t in truth.grads.items()}
    peaks = {name: t.abs().max().item() for name, t in truth.grads.items()}
    errors = {name: _error(g, truth.grads[name]) for name, g in rough.grads.items()}
    usual = statistics.median(errors[n][0] / sizes[n] for n in sizes if sizes[n])
    usual_one = statistics.median(errors[n][1] / peaks[n] for n in peaks if peaks[n])
    floor = FLOOR * math.hypot(*sizes.values())
    for name, size in sizes.items():
        error, one = _error(grads[name], truth.grads[name])
        yard, yard_one = errors[name]
        band, unit = SLACK * max(yard, usual * size) + floor, size or 1.0
        yield f"the gradient of {name}, by its relative error,", error / unit, 0.0, band / unit
        band, unit = ONE * max(yard_one, usual_one * peaks[name]) + floor, peaks[name] or 1.0
        yield f"the gradient of {name}, by its largest error in an element,", one / unit, 0.0, band / unit


def _error(got: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """Length and largest element of the difference; NaN where it is NaN anywhere."""
    squares, most = [], []
    for ours, exact in zip(got.flatten().split(PIECE), truth.flatten().split(PIECE), strict=True):  # in the cache
        apart = ours.double().sub_(exact)
        squares.append(apart.dot(apart))
        most.append(apart.abs_().max())
    return torch.stack(squares).sum().sqrt().item(), torch.stack(most).max().item()


def length(tensor: torch.Tensor) -> float:
    """The Euclidean norm, summed in fp64."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).item()

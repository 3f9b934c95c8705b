"""The parity gate: does our training follow PyTorch's as closely as PyTorch follows itself?

Everything starts from the same parameters and sees the same batches. The centre is PyTorch's eager run in fp32.
Rounding alone moves a run off it, the more so the longer it trains (AdamW divides tiny gradients by their own size).
How far, is measured, not assumed: PyTorch runs again at the working dtype and in our step's formats, each time from
parameters moved at random by up to one unit in the last place; the baselines that are timed anyway are runs of
PyTorch too. With dev(s) the largest distance of any of these from the centre at step s,

    band(t) = SLACK * max(dev(s) for s <= max(t, POOLED)) + FLOOR * |centre(t)|

The running maximum is there because distances do not shrink by luck alone; the first steps are pooled because a single
step of a single run may hit the centre by chance. FLOOR (a few units in fp32's last place, for the sums over tokens and
over gradients) keeps the band from zero width. Three things must stay inside at every step: the loss, the global
gradient norm, and the norm of each parameter's gradient, where dev is the largest relative distance over all parameters
and runs. The last one names the culprit, and sees a gradient that is small beside the rest. At the first step it has a
band of its own, which is narrower: nothing has been learned yet.

What the optimizer does hides in that band, which in bf16 is a thousand times wider than a step's weight decay. So each
update is judged by itself (`Updates`): AdamW's formula in fp64, on the gradients and the state that ours had, says what
must have become of a random sample of every parameter and its moments. State is kept in fp32 at every dtype, and is
judged as fp32: within SLACK times what the formula errs by in fp32, and FLOOR of the values that were added. A decay of
less than that, lr * decay < FLOOR, cannot be seen, nor felt. Where the gradient norm is not finite, nothing may change.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.cli import CannotGoOn
from reference import contract
from reference.models.model import Model

SLACK = 4.0  # as in the check of single layers: an error may be four times PyTorch's own
POOLED = 3
FLOOR = 8 * 2.0**-23

EPS = {"bf16": 2.0**-7, "fp16": 2.0**-10}  # one unit in the last place, relative
TINY = 2.0**-126  # fp32's smallest normal number: below it a kernel may round to 0

Trajectory = Sequence[Mapping[str, Any]]  # one dict a step: loss, norm, and at the first step norms


class NotFinite(CannotGoOn):
    """PyTorch's own training left the finite numbers: there is nothing to judge by."""


def must_be_finite(name: str, run: Trajectory, lr: float) -> None:
    """Raises NotFinite with the name of the run and the step where it went astray."""
    for i, step in enumerate(run):
        if not _finite([step]):
            raise NotFinite(
                f"{name} is not finite from step {i + 1} on at --lr {lr:g} (loss {step['loss']:.3g}, gradient norm "
                f"{step['norm']:.3g}): there is no band to judge by; lower --lr"
            )


def _finite(run: Trajectory) -> bool:
    return all(math.isfinite(s["loss"]) and math.isfinite(s["norm"]) for s in run)


@dataclass(frozen=True)
class Excess:
    """One number outside the band. `step` counts from one."""

    what: str
    step: int
    ours: float
    centre: float
    band: float
    whose: str = "PyTorch's"

    @property
    def times(self) -> float:
        """Distance in units of the band; infinite for what is not finite."""
        found = abs(self.ours - self.centre) / self.band if self.band else math.inf
        return found if math.isfinite(found) else math.inf

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.what} is {self.ours:.6g}, {self.whose} {self.centre:.6g} ± {self.band:.2g} "
            f"({self.times:.3g} times the band)"
        )


@dataclass(frozen=True)
class Gate:
    """The band around PyTorch's run, step by step."""

    centre: Trajectory
    loss: list[float]
    norm: list[float]
    gradients: float  # relative, for every parameter's gradient at the first step
    later: list[float] = field(default_factory=list)  # the same at each step

    @classmethod
    def measured(cls, centre: Trajectory, runs: Sequence[Trajectory]) -> "Gate":
        """The band from PyTorch's own runs, each as long as the centre. Raises NotFinite."""
        for run in [centre, *runs]:
            if not _finite(run):
                raise NotFinite("PyTorch's own run is not finite at these settings: lower --lr")
        apart = [_apart(step, [run[t] for run in runs]) for t, step in enumerate(centre)]
        later = [SLACK * max(apart[: max(t + 1, POOLED)]) + FLOOR for t in range(len(centre))]
        first = SLACK * apart[0] + FLOOR
        return cls(centre, _band(centre, runs, "loss"), _band(centre, runs, "norm"), first, [first, *later[1:]])

    def excesses(self, run: Trajectory) -> list[Excess]:
        """All numbers of a run that leave the band, by step, the worst first; empty inside. NaN is outside."""
        found = []
        for t, (step, centre) in enumerate(zip(run, self.centre, strict=False)):
            for what, name, band in (("loss", "loss", self.loss), ("gradient norm", "norm", self.norm)):
                if not abs(step[name] - centre[name]) <= band[t]:
                    found.append(Excess(what, t + 1, step[name], centre[name], band[t]))
            for name, norm in centre.get("norms", {}).items() if step.get("norms") else ():
                width, ours = self.band_of(t, norm), step["norms"][name]
                if not abs(ours - norm) <= width:
                    found.append(Excess(f"gradient norm of {name}", t + 1, ours, norm, width))
        return sorted(found, key=lambda e: (e.step, -e.times))

    def band_of(self, t: int, norm: float) -> float:
        """Of a parameter's gradient, whose norm the centre has at step t, counted from 0."""
        return self.later[t] * norm + FLOOR * self.centre[t]["norm"]

    def worst(self, run: Trajectory, name: str) -> float:
        """The largest distance of a run from the centre, in units of the band; `name` is loss or norm."""
        band = {"loss": self.loss, "norm": self.norm}[name]
        shares = [abs(a[name] - c[name]) / b for a, c, b in zip(run, self.centre, band, strict=False)]
        return max(shares) if all(map(math.isfinite, shares)) else math.inf


def _apart(centre: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> float:
    """The largest relative distance of any parameter's gradient from the centre's, of those who tell theirs."""
    norms = centre.get("norms", {}).items()
    told = [step["norms"] for step in steps if step.get("norms")]
    return max((abs(of[name] - norm) / norm for of in told for name, norm in norms if norm), default=0.0)


def _band(centre: Trajectory, runs: Sequence[Trajectory], name: str) -> list[float]:
    dev = [max((abs(run[t][name] - c[name]) for run in runs), default=0.0) for t, c in enumerate(centre)]
    return [SLACK * max(dev[: max(t + 1, POOLED)]) + FLOOR * abs(c[name]) for t, c in enumerate(centre)]


# --- the optimizer ---


@dataclass(frozen=True)
class State:
    """A sample of the optimizer's state, (elements,) each, plain numbers as they travel; masters only below fp32."""

    params: list[float]
    m: list[float]
    v: list[float]
    masters: list[float] | None

    def named(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in ("params", "m", "v", "masters")}
        return {name: np.array(values, np.float32) for name, values in found.items() if values is not None}


@dataclass(frozen=True)
class Update:
    """What the optimizer was given at some elements, and what it made of them. `counts`: how many elements are of each
    parameter, one parameter after the other."""

    counts: list[int]
    grads: list[float]
    grad_scale: float
    lr: float
    before: State
    after: State


@dataclass
class Updates:
    """Judges the updates of one contestant, in the order of its steps. `dtype` is the working one's name."""

    model: Model
    dtype: str
    steps: int = 0  # that there were
    updates: int = 0  # of those, the ones that changed parameters
    excesses: list[Excess] = field(default_factory=list)

    def judge(self, update: Update, norm: float) -> None:
        """The next step's update, `norm` that of its gradients."""
        self.steps += 1
        if math.isfinite(norm):
            self.updates += 1
            self.excesses += self._wrong(update)
        else:
            self.excesses += self._moved(update, norm)

    def _wrong(self, update: Update) -> Iterator[Excess]:
        want, rough = (self._formula(update, dtype) for dtype in (torch.float64, torch.float32))
        before, after = update.before.named(), update.after.named()
        for name, values in after.items():
            kept = before[name].astype(np.float64)
            floor = FLOOR * (np.abs(kept) + np.abs(want[name])) + TINY
            if name == "params" and "masters" in after:  # the master's rounding, whatever the master is
                want[name] = after["masters"].astype(np.float64)
                floor = np.abs(want[name]) * EPS[self.dtype] + TINY
                rough[name] = want[name]
            elif name == "params" and self.dtype in EPS:  # rounded at random, up or down
                floor += np.abs(want[name]) * EPS[self.dtype]
            error = np.abs(values.astype(np.float64) - want[name])
            slack = np.abs(rough[name] - want[name])
            for parameter, part in self._parts(update):
                band = SLACK * slack[part].max() + floor[part]
                if not (error[part] <= band).all():
                    worst = int(np.argmax(np.nan_to_num(error[part] / band, nan=np.inf)))
                    yield self._excess(name, parameter, values[part][worst], want[name][part][worst], band[worst])

    def _moved(self, update: Update, norm: float) -> Iterator[Excess]:
        before, after = update.before.named(), update.after.named()
        for name, values in after.items():
            for parameter, part in self._parts(update):
                changed = (values[part] != before[name][part]).nonzero()[0]
                if len(changed):
                    i = changed[0]
                    what = f"{name} (gradient norm {norm:g}, so no update)"
                    yield self._excess(what, parameter, values[part][i], before[name][part][i], 0.0, "before it was")

    def _excess(
        self, name: str, parameter: str, ours: float, want: float, band: float, whose: str = "by AdamW's formula"
    ) -> Excess:
        what = f"{'the parameter' if name == 'params' else name.removesuffix('s')} of {parameter} after the update"
        return Excess(what, self.steps, float(ours), float(want), float(band), whose)

    def _parts(self, update: Update) -> Iterator[tuple[str, slice]]:
        end = 0
        for parameter, count in zip(self.model.parameter_shapes(), update.counts, strict=True):
            end += count
            yield parameter, slice(end - count, end)

    def _formula(self, update: Update, dtype: torch.dtype) -> dict[str, np.ndarray]:
        """The reference's AdamW on the sample, at a dtype."""
        shape = self.model.update_shapes()[1]
        adamw = contract.load("adamw")

        def lists(values: list[float] | None) -> list[torch.Tensor] | None:
            return None if values is None else list(torch.tensor(values).to(dtype).split(update.counts))

        numbers = (torch.tensor(x, dtype=dtype) for x in (self.updates, update.lr, update.grad_scale))
        scalars = [shape[name] for name in adamw.FORWARD.scalars]
        kept = {name: lists(getattr(update.before, name)) for name in ("params", "m", "v", "masters")}
        new = adamw.forward(lists(update.grads), *numbers, *scalars, **kept)
        return {name: torch.cat(values).double().numpy() for name, values in new.items()}

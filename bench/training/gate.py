"""The parity gate: does our training follow PyTorch's as closely as PyTorch follows itself?

Everything starts from the same parameters and sees the same batches. The centre is PyTorch's eager run in fp32.
Rounding alone moves a run off it, the more so the longer it trains (AdamW divides tiny gradients by their own size).
How far, is measured, not assumed: PyTorch runs again at the working dtype and in our step's formats, each time from
parameters moved at random by up to one unit in the last place; the baselines that are timed anyway are runs of
PyTorch too. With dev(s) the largest distance of any of these from the centre at step s,

    band(t) = SLACK * max(dev(s) for s <= max(t, POOLED)) + FLOOR * |centre(t)|

The running maximum is there because distances do not shrink by luck alone; the first steps are pooled because a single
step of a single run may hit the centre by chance. FLOOR (a few units in fp32's last place, for the sums over tokens and
over gradients) keeps the band from zero width. Three things must stay inside: the loss and the global gradient norm at
every step, and the norm of each parameter's gradient at the first step, where dev is the largest relative distance
over all parameters and runs. The last one names the culprit, and sees a gradient that is small beside the rest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SLACK = 4.0  # as in the check of single layers: an error may be four times PyTorch's own
POOLED = 3
FLOOR = 8 * 2.0**-23

Trajectory = Sequence[Mapping[str, Any]]  # one dict a step: loss, norm, and at the first step norms


@dataclass(frozen=True)
class Excess:
    """One number outside the band. `step` counts from one."""

    what: str
    step: int
    ours: float
    centre: float
    band: float

    @property
    def times(self) -> float:
        """Distance in units of the band; infinite for what is not finite."""
        found = abs(self.ours - self.centre) / self.band
        return found if math.isfinite(found) else math.inf

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.what} is {self.ours:.6g}, PyTorch's {self.centre:.6g} ± {self.band:.2g} "
            f"({self.times:.3g} times the band)"
        )


@dataclass(frozen=True)
class Gate:
    """The band around PyTorch's run, step by step."""

    centre: Trajectory
    loss: list[float]
    norm: list[float]
    gradients: float  # relative, for every parameter's gradient at the first step

    @classmethod
    def measured(cls, centre: Trajectory, runs: list[Trajectory]) -> "Gate":
        """The band from PyTorch's own runs, each as long as the centre. Raises ValueError where one is not finite."""
        for run in [centre, *runs]:
            if not all(math.isfinite(s["loss"]) and math.isfinite(s["norm"]) for s in run):
                raise ValueError("PyTorch's own run is not finite at these settings: lower --lr")
        theirs = centre[0]["norms"]
        distances = [
            abs(run[0]["norms"][name] - norm) / norm
            for run in runs
            if run[0].get("norms")
            for name, norm in theirs.items()
            if norm
        ]
        return cls(
            centre,
            _band(centre, runs, "loss"),
            _band(centre, runs, "norm"),
            SLACK * max(distances, default=0.0) + FLOOR,
        )

    def excesses(self, run: Trajectory) -> list[Excess]:
        """All numbers of a run that leave the band, by step, the worst first; empty inside. NaN is outside."""
        found = []
        for t, (step, centre) in enumerate(zip(run, self.centre, strict=False)):
            for what, name, band in (("loss", "loss", self.loss), ("gradient norm", "norm", self.norm)):
                if not abs(step[name] - centre[name]) <= band[t]:
                    found.append(Excess(what, t + 1, step[name], centre[name], band[t]))
        for name, norm in self.centre[0]["norms"].items():
            band = self.gradients * norm + FLOOR * self.centre[0]["norm"]
            ours = run[0]["norms"][name]
            if not abs(ours - norm) <= band:
                found.append(Excess(f"gradient norm of {name}", 1, ours, norm, band))
        return sorted(found, key=lambda e: (e.step, -e.times))

    def worst(self, run: Trajectory, name: str) -> float:
        """The largest distance of a run from the centre, in units of the band; `name` is loss or norm."""
        band = {"loss": self.loss, "norm": self.norm}[name]
        shares = [abs(a[name] - c[name]) / b for a, c, b in zip(run, self.centre, band, strict=False)]
        return max(shares) if all(map(math.isfinite, shares)) else math.inf


def _band(centre: Trajectory, runs: list[Trajectory], name: str) -> list[float]:
    dev = [max((abs(run[t][name] - c[name]) for run in runs), default=0.0) for t, c in enumerate(centre)]
    return [SLACK * max(dev[: max(t + 1, POOLED)]) + FLOOR * abs(c[name]) for t, c in enumerate(centre)]

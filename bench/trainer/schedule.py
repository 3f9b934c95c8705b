"""Learning rates by step: llm.c's four schedules, with its meaning of warm-up and of the final fraction."""

import math
from dataclasses import dataclass

WSD_STABLE = 0.8  # share of all steps before wsd's decay (Hägele et al. 2024, arXiv 2405.18392)


@dataclass(frozen=True)
class Schedule:
    """A learning rate for each of `steps` steps: up in a line over `warmup` steps, then by `kind` from `peak` down to
    `final` * peak; `constant` has neither, as in llm.c.

    cosine: half a cosine. linear: a line. wsd: at the peak for 80 % of the steps, then down by 1 - sqrt.
    """

    kind: str
    peak: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """The learning rate of one step, counted from 0. After the last one it stays where the schedule ends."""
        if self.kind == "constant":
            return self.peak
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        lowest = self.peak * self.final
        return lowest + self._left(step) * (self.peak - lowest)

    def _left(self, step: int) -> float:
        """The part of the way from peak to final that is still ahead, 1 … 0."""
        start = int(WSD_STABLE * self.steps) if self.kind == "wsd" else self.warmup
        gone = min(1.0, max(0.0, (step - start) / max(1, self.steps - start)))
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * gone))
        return 1 - math.sqrt(gone) if self.kind == "wsd" else 1 - gone

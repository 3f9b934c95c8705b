"""How unusual a loss or a gradient norm is among the last ones, in standard deviations."""

import math
from collections import deque
from collections.abc import Iterable

from bench.trainer import WINDOW


class Outliers:
    """The last WINDOW values. As in llm.c a value is judged among them and itself, once there are so many, and an
    outlier stays in the window; what is not finite never gets into it."""

    def __init__(self, values: Iterable[float] = ()):
        self.values = deque(values, maxlen=WINDOW)

    def add(self, value: float) -> float | None:
        """The value's z-score; None for one that is not finite, and while the window fills."""
        if not math.isfinite(value):
            return None
        full = len(self.values) == WINDOW
        self.values.append(value)
        return self._z(value) if full else None

    def _z(self, value: float) -> float:
        mean = math.fsum(self.values) / WINDOW
        variance = math.fsum((x - mean) ** 2 for x in self.values) / WINDOW
        return (value - mean) / math.sqrt(variance) if variance > 0 else 0.0

    def state(self) -> list[float]:
        """What `Outliers(state)` goes on from."""
        return list(self.values)

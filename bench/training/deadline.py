"""The time that a run may take: how much of it is left, and what still fits."""

import math
import time

LEAST_LIMIT_S = 1.0  # of a command that is sent at all
END_S = 3.0  # for the last records, the page, and ending the processes


class Deadline:
    """`minutes` from `begin` (seconds of time.monotonic); None is for ever."""

    def __init__(self, minutes: float | None, begin: float):
        self.minutes = minutes
        self.end = math.inf if minutes is None else begin + 60 * minutes - END_S

    @property
    def left(self) -> float:
        """Seconds, below 0 where it is over."""
        return self.end - time.monotonic()

    @property
    def bounded(self) -> bool:
        return self.minutes is not None

    def limit(self, seconds: float, share: float = 1.0) -> float:
        """A command's own limit, and no more than a share of what is left."""
        return min(seconds, max(LEAST_LIMIT_S, share * self.left)) if self.bounded else seconds

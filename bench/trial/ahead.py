"""Threads of a variant's own that are at work before the clock starts, once a call's inputs lie there: they work out
its answer, or read its inputs into the cache that was just emptied.

    ahead = Ahead()
    with ahead.born(): …                  whatever is the variant's: threads that are new then are its own
    ahead.begin()                         a turn begins; at its first call …
    ahead.given()                         … what it reads is there, and its outputs are poisoned
    ahead.starts()                        … and the clock is about to start
    ahead.took(seconds)                   … of that call
    ahead.end()
    ahead.evidence()                      "" or what they did

Only first calls of a turn tell: a pool of OpenMP's waits for the next call by turning, which is over, or goes on, while
others have their turns. What it wants then is taken off.
"""

import contextlib
import os
import time
from collections.abc import Iterator

PERF_COUNTER, CLOCK_TIME, LIST = time.perf_counter, time.clock_gettime, os.listdir
TASKS = "/proc/self/task"
RESTED_S = 0.05  # since its last turn: else it says nothing of who waits for what
FEWEST = 3  # calls that are looked at
SHARE, LEAST_S = 0.25, 100e-6  # of a call's time that they may work before it; what is less than that is nothing


class Ahead:
    """Of one process; it answers for nothing where the system has no clock of a thread."""

    def __init__(self) -> None:
        self.own: set[str] = set()  # threads
        self.left: tuple[float, float] | None = None  # when its last turn ended, and what they had run by then
        self.idle_share: float | None = None  # of a core that they ran since; None: nobody looks at the next call
        self.before: tuple[float, float] | None = None
        self.worked_s = self.took_s = 0.0  # before calls that were looked at; and how long these took
        self.calls = 0

    @contextlib.contextmanager
    def born(self) -> Iterator[None]:
        before = self.tasks()
        try:
            yield
        finally:
            self.own |= self.tasks() - before

    @staticmethod
    def tasks() -> set[str]:
        with contextlib.suppress(OSError):
            return set(LIST(TASKS))
        return set()

    def _now(self) -> tuple[float, float]:
        """The time, and the seconds that its own threads have run."""
        ran = 0.0
        for task in self.own:
            with contextlib.suppress(OSError):  # it has ended
                ran += CLOCK_TIME(~int(task) << 3 | 6)
        return PERF_COUNTER(), ran

    def begin(self) -> None:
        self.idle_share = None
        if self.left and self.own:
            (then, had), (now, ran) = self.left, self._now()
            if now - then >= RESTED_S:
                self.idle_share = (ran - had) / (now - then)
        self.left = None

    def given(self) -> None:
        self.before = self._now() if self.idle_share is not None else None

    def starts(self) -> None:
        if self.before is not None and self.idle_share is not None:
            (then, had), (now, ran) = self.before, self._now()
            self.worked_s += max(0.0, ran - had - self.idle_share * (now - then))
            self.calls += 1

    def took(self, seconds: float) -> None:
        if self.before is not None:
            self.took_s += seconds
        self.before = self.idle_share = None

    def end(self) -> None:
        self.left = self._now() if self.own else None

    def evidence(self) -> str:
        if self.calls < FEWEST or self.worked_s <= max(SHARE * self.took_s, LEAST_S * self.calls):
            return ""
        each, took = self.worked_s / self.calls, self.took_s / self.calls
        return (
            f"threads of its own worked {each * 1e3:.2g} ms before each of {self.calls} calls began, once its inputs"
            f" were there, and a call took {took * 1e3:.2g} ms"
        )

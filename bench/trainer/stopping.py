"""Ctrl-C and SIGTERM while training: the first asks for an end after the step, a second one ends at once."""

import signal
import time
from types import FrameType, TracebackType

from bench import cli

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ONE_WISH_S = 3.0  # at a time limit slurmstepd and srun both send SIGTERM (20 ms apart was seen); torchrun passes it on


class Asked(Exception):
    """An end was asked for, and what is under way need not be finished."""


class Stopping:
    """Use as a context manager, in the main thread; `asked` is the name of the signal that came, or "".

    SIGTERM soon after SIGTERM is the same wish, told by two; a person who presses Ctrl-C twice means it. What was
    ignored stays ignored, as under nohup. quiet: another process says that it was heard.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.asked, self.quiet = "", quiet
        self._when = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stopping":
        for number in ASKING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raises Asked once an end was asked for."""
        if self.asked:
            raise Asked

    def _heard(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == self.asked == "SIGTERM" and time.monotonic() - self._when < ONE_WISH_S:
            return
        if self.asked:  # every file is whole or not there, at any moment
            raise KeyboardInterrupt
        self.asked, self._when = name, time.monotonic()
        cli.say(f"{name}: this step is finished and a checkpoint written; once more ends at once", self.quiet)

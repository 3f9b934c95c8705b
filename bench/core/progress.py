"""How far a command is, and how long it will take: on stderr, so that stdout stays clean.

On a terminal one line that moves, and that is gone before anything else is written; else a plain line every ten
seconds, so that a log shows a command that is alive.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

MARK = "... "  # what a plain line begins with: no verdict, and no error
PLAIN_SECONDS = 10.0  # between two plain lines
LIVE_SECONDS = 0.25  # between two looks of the line that moves
ERASE = "\r\x1b[2K"

T = TypeVar("T")


@dataclass
class Units:
    """Some equal pieces of work: how many there are, are done, and what they take."""

    word: str  # of one: "case"
    total: int
    guess_s: float | None = None  # of one, as long as none is done
    done: int = 0
    done_s: float = 0.0  # that those took
    now_s: float = 0.0  # that the one under way has had

    @property
    def left(self) -> int:
        return max(0, self.total - self.done)

    def left_s(self) -> float | None:
        """Seconds that the rest takes; None where nothing tells. A guess that the first piece has outlasted is none."""
        each = self.done_s / self.done if self.done else self.guess_s and max(self.guess_s, self.now_s)
        if not self.left:
            return 0.0
        return None if each is None else each * (self.left - 1) + max(0.0, each - self.now_s)


class Progress:
    """The line of one command; use as a context manager. Safe to be told things by several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, stream: TextIO | None = None):
        self.clock, self.stream = clock, stream
        self.units: dict[str, Units] = {}
        self.now: Units | None = None  # what is being done
        self.text = ""
        self.lock = threading.RLock()
        self.over = threading.Event()
        self.drawn = self.midline = False  # whether the line is to be seen, and whether something else's is unfinished
        self.since = clock()  # when `now_s` was last brought up to date

    # --- what it is told ---

    def expect(self, word: str, total: int, guess_s: float | None = None) -> None:
        """There are so many more of these to do; each takes about so long."""
        with self.lock:
            units = self.units.setdefault(word, Units(word, 0, guess_s))
            units.total += total

    def begin(self, word: str, text: str = "") -> None:
        """One of those is begun."""
        with self.lock:
            self._count_time()
            self.now = self.units.setdefault(word, Units(word, 1))
            self.text = text or self.text

    def done(self, word: str, took: bool = True) -> None:
        """One of those is done; not `took`: it was none after all (skipped, known before), and tells no time."""
        with self.lock:
            self._count_time()
            units = self.units.setdefault(word, Units(word, 1))
            units.done += took
            units.total -= not took
            units.done_s += units.now_s if took else 0.0
            units.now_s = 0.0

    def tell(self, text: str) -> None:
        """What is being done just now."""
        with self.lock:
            self.text = text

    def _count_time(self) -> None:
        now = self.clock()
        if self.now:
            self.now.now_s += now - self.since
        self.since = now

    def line(self) -> str:
        """`case 3 of 12, about 2:10 left: round 4: cpu.simd`"""
        with self.lock:
            self._count_time()
            far = ""
            if self.now and self.now.total > 1 and self.now.left:  # of what is over no count stands beside what follows
                far = f"{self.now.word} {min(self.now.done + 1, self.now.total)} of {self.now.total}"
            left = [units.left_s() for units in self.units.values()]
            # Where one kind of work tells nothing yet, the others alone would promise too much.
            if None not in left and (seconds := sum(filter(None, left))) >= 1:
                far += (", " if far else "") + f"about {minutes(seconds)} left"
            return ": ".join(filter(None, (far, self.text)))

    # --- what is seen of it ---

    def __enter__(self) -> "Progress":
        global _current
        self.before, _current = _current, self
        self.stderr = self.stream or sys.stderr
        self.live = self.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self.streams = sys.stdout, sys.stderr
        if self.live and not self.before:
            # Whatever is printed meanwhile stands on lines of its own, whoever prints it.
            sys.stdout, sys.stderr = (_Above(self, stream) for stream in self.streams)  # type: ignore[assignment]
        self.over.clear()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        if not self.before:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = self.before
        if self.before:
            return
        self.over.set()
        self.thread.join()
        with self.lock:
            self.erase()
        for name, stream in zip(("stdout", "stderr"), self.streams, strict=True):
            if isinstance(getattr(sys, name), _Above):  # nobody has put another one in its place
                setattr(sys, name, stream)

    def _tick(self) -> None:
        while not self.over.wait(LIVE_SECONDS if self.live else PLAIN_SECONDS):
            try:
                self.draw() if self.live else self.write_plain()
            except (OSError, ValueError):  # nobody reads it any more
                return

    def write_plain(self) -> None:
        if line := self.line():
            print(f"{MARK}{line}", file=self.stderr, flush=True)

    def draw(self) -> None:
        """The line, cut to the terminal's width: a line that wraps could not be taken back."""
        with self.lock:
            line = self.line()
            if self.midline or not line:
                return
            width = shutil.get_terminal_size().columns - 1
            line = line if len(line) <= width else line[: max(0, width - 1)] + "…"
            self.stderr.write(f"{ERASE}{line}")
            self.stderr.flush()
            self.drawn = True

    def erase(self) -> None:
        if self.drawn:
            self.stderr.write(ERASE)
            self.stderr.flush()
            self.drawn = False


class _Above:
    """A stream of the same terminal: what is written to it takes the moving line away first."""

    def __init__(self, progress: Progress, stream: TextIO):
        self._progress, self._stream = progress, stream

    def write(self, text: str) -> int:
        with self._progress.lock:
            self._progress.erase()
            if text:
                self._progress.midline = not text.endswith("\n")
            written = self._stream.write(text)
            self._stream.flush()
            return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_current: Progress | None = None


def tell(text: str) -> None:
    """What is being done just now, where anybody is told."""
    if _current:
        _current.tell(text)


def track(items: Sequence[T], word: str, text: Callable[[T], str] = lambda _: "") -> Iterator[T]:
    """The items, each told as one of so many while it is worked on: in the command's line, or in one of its own."""
    with Progress() as own:
        line = own.before or own
        line.expect(word, len(items))
        for item in items:
            line.begin(word, text(item))
            yield item
            line.done(word)


def minutes(seconds: float) -> str:
    """2:05"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

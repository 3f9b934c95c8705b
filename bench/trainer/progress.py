"""What is seen of a training run: one line a step when piped, a display that stays in its place on a terminal."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from bench.core.progress import Progress as Line
from bench.show.texts import DASH, percent

FORGET = 0.95  # of the average of tokens a second: what a step keeps of those before, as llm.c's


class Speed:
    """Tokens a second as an average that forgets; its first values are not drawn to 0 (as Adam's moments are not)."""

    def __init__(self) -> None:
        self.mean, self.weight = 0.0, 0.0

    def add(self, tokens: int, seconds: float) -> float:
        self.mean = FORGET * self.mean + (1 - FORGET) * tokens / seconds
        self.weight = FORGET * self.weight + (1 - FORGET)
        return self.mean / self.weight


@dataclass(frozen=True)
class Seen:
    """What there is to say of a step, as the journal has it."""

    step: int  # 1 is the first
    steps: int
    loss: float
    loss_z: float | None
    norm: float
    norm_z: float | None
    lr: float
    ms: float
    tokens_per_s: float
    mfu: float | None  # PaLM's convention, of the measured matmul rate
    memory_bytes: int
    left_s: float
    skipped: str = ""

    def __str__(self) -> str:
        parts = [
            f"step {self.step:>{len(str(self.steps))}}/{self.steps}",
            f"loss {self.loss:.6f}{z_text(self.loss_z)}",
            f"norm {self.norm:.4f}{z_text(self.norm_z)}",
            f"lr {self.lr:.2e}",
            f"{self.ms:.1f} ms",
            f"{self.tokens_per_s:,.0f} tok/s",
            f"MFU {percent(self.mfu)}",
            f"{self.memory_bytes / 1e9:.2f} GB",
            f"{clock(self.left_s)} to go",
        ]
        return "  ".join(parts) + (f"  update left out: {self.skipped}" if self.skipped else "")


def z_text(z: float | None) -> str:
    return "" if z is None else f" ({z:+.2f}z)"


def clock(seconds: float) -> str:
    """1:02:03, 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Screen:
    """Lines on stdout; on a terminal a bar under them. quiet: of a rank that does not speak."""

    def __init__(self, steps: int, first: int, quiet: bool = False):
        self.quiet, self.steps = quiet, steps
        self.live = sys.stdout.isatty() and not quiet
        if self.live:
            columns: list[ProgressColumn] = [BarColumn(bar_width=12), _Last()]
            self.progress = Progress(*columns, console=Console(), expand=True)
            self.task = self.progress.add_task("", total=steps, completed=first, seen="")

    def __enter__(self) -> "Screen":
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.progress.stop()

    def step(self, seen: Seen) -> None:
        if self.live:
            self.progress.update(self.task, completed=seen.step, seen=str(seen))
        if not self.live or seen.skipped:
            self.say(str(seen))

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self.live:
            self.progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """While what comes before a step takes its time: it stands in the bar, or on a plain line now and then."""
        if self.quiet:
            yield
        elif self.live:
            self.progress.update(self.task, seen=text)
            yield
        else:
            with Line() as line:
                line.tell(text)
                yield


class _Last(ProgressColumn):
    """What the last step came to."""

    def render(self, task: Task) -> "_Parts":
        return _Parts((task.fields["seen"] or DASH).split("  "))


class _Parts:
    """Parts of a line, on as many lines as it takes; none is broken inside."""

    def __init__(self, parts: list[str]):
        self.parts = parts

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, self.parts)), len("  ".join(self.parts))).clamp(max_width=options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = self.parts[0]
        for part in self.parts[1:]:
            if len(line) + 2 + len(part) > options.max_width:
                yield Text(line, no_wrap=True)
                line = part
            else:
                line += "  " + part
        yield Text(line, no_wrap=True)

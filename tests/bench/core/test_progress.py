"""The line that says how far a command is: alone on its line, and honest about the time."""

import io
import sys
import time

from bench.core import progress
from bench.core.progress import ERASE, MARK, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def one_terminal(monkeypatch) -> Terminal:
    """stdout and stderr are one terminal; asked for by the test itself, for pytest has its own until then."""
    both = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    return both


def screen(text: str) -> list[str]:
    """What is to be seen in the end of what was written to a terminal."""
    return [line.rpartition(ERASE)[2] for line in text.split("\n")]


def test_it_says_how_far_and_how_long():
    clock = Clock()
    p = Progress(clock)
    p.expect("case", 4, guess_s=12.0)
    p.begin("case", "round 1: cpu.simd")
    assert p.line() == "case 1 of 4, about 0:48 left: round 1: cpu.simd"
    clock.now = 6.0
    assert "about 0:42 left" in p.line(), "the guess, and what has passed of it"
    p.done("case")
    p.begin("case", "round 1: cpu.naive")
    assert p.line() == "case 2 of 4, about 0:18 left: round 1: cpu.naive", "as the first one took"
    clock.now = 60.0
    assert "about 0:12 left" in p.line(), "the others at least, where one takes longer than was thought"
    for _ in range(3):
        p.done("case")
    p.tell("the page")
    assert p.line() == "the page", "which is no case"


def test_what_is_skipped_is_no_measure_of_the_rest():
    clock = Clock()
    p = Progress(clock)
    p.expect("proof", 10)
    p.done("proof", took=False)
    assert "left" not in p.line(), "nothing tells yet"
    p.begin("proof")
    clock.now = 2.0
    p.done("proof")
    p.begin("proof")
    assert p.line() == "proof 2 of 9, about 0:16 left"


def test_nothing_is_promised_while_one_kind_of_work_has_told_nothing():
    clock = Clock()
    p = Progress(clock)
    p.expect("case", 2, guess_s=2.0)
    p.expect("proof", 8)
    p.begin("proof", "a")
    clock.now = 5.0
    assert p.line() == "proof 1 of 8: a"
    p.done("proof")
    p.begin("proof", "b")
    assert p.line() == "proof 2 of 8, about 0:39 left: b"


def test_a_guess_that_the_first_piece_outlasts_is_not_kept_to():
    clock = Clock()
    p = Progress(clock)
    p.expect("case", 3, guess_s=2.0)
    p.begin("case", "a")
    clock.now += 30
    assert "about 1:00 left" in p.line(), "two more of at least as long"


def test_what_is_printed_meanwhile_stands_on_lines_of_its_own(monkeypatch):
    terminal = one_terminal(monkeypatch)
    with Progress() as p:
        p.tell("round 1: cpu.simd")
        p.draw()
        print("a table's title")
        p.draw()
        print("a note", file=sys.stderr)
        print("half", end="")
        p.draw()
        print(" a line")
        p.draw()
    assert sys.stdout is terminal and sys.stderr is terminal
    assert screen(terminal.getvalue()) == ["a table's title", "a note", "half a line", ""]
    assert "round 1: cpu.simd" in terminal.getvalue()


def test_the_line_is_never_longer_than_the_terminal(monkeypatch):
    terminal = one_terminal(monkeypatch)
    with Progress() as p:
        p.tell("x" * 200)
        p.draw()
    assert max(len(part) for part in terminal.getvalue().split(ERASE)) == 59


def test_piped_it_is_a_plain_line_from_time_to_time(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.02)
    said = io.StringIO()
    with Progress(stream=said) as p:
        p.expect("case", 2)
        p.begin("case", "warming up cpu.simd")
        end = time.monotonic() + 5
        while said.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    lines = said.getvalue().splitlines()
    assert len(lines) >= 2 and set(lines) == {f"{MARK}case 1 of 2: warming up cpu.simd"}
    assert "\x1b" not in said.getvalue() and not isinstance(sys.stdout, progress._Above)


def test_nothing_is_said_of_what_is_quick(capsys):
    assert list(progress.track([1, 2, 3], "run")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_one_inside_another_is_told_in_the_same_line():
    with Progress(stream=io.StringIO()) as p:
        for run in progress.track(["a", "b"], "run", str):
            assert p.line().startswith(f"run {1 + (run == 'b')} of 2") and p.line().endswith(f": {run}")
        assert progress._current is p
    assert progress._current is None

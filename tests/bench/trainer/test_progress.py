import io
import time

import pytest

from bench.core import progress as lines
from bench.trainer.progress import Screen, Seen, Speed, clock

SEEN = Seen(12, 340, 3.25, 0.5, 1.5, -2.25, 3e-4, 12.34, 20812.4, 0.345, 2_500_000_000, 3723, "")


def test_a_line_says_all_there_is():
    assert str(SEEN) == (
        "step  12/340  loss 3.250000 (+0.50z)  norm 1.5000 (-2.25z)  lr 3.00e-04  12.3 ms  20,812 tok/s  MFU 34%"
        "  2.50 GB  1:02:03 to go"
    )


def test_what_is_unknown_is_not_invented():
    seen = Seen(1, 3, 3.25, None, 1.5, None, 3e-4, 12.34, 20812.4, None, 2_500_000_000, 59.6, "loss z 9.00 > 3")
    assert "z)" not in str(seen)
    assert "MFU –" in str(seen)
    assert str(seen).endswith("1:00 to go  update left out: loss z 9.00 > 3")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (359999, "99:59:59")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_speed_forgets_and_is_not_drawn_to_nothing_at_first():
    speed = Speed()
    assert speed.add(100, 1.0) == pytest.approx(100)
    assert speed.add(100, 1.0) == pytest.approx(100)
    assert 100 < speed.add(200, 1.0) < 140
    for _ in range(200):
        last = speed.add(200, 1.0)
    assert last == pytest.approx(200, rel=1e-3)


def test_piped_it_is_a_line_a_step(capsys):
    with Screen(340, 0) as screen:
        screen.step(SEEN)
        screen.say("a look")
    assert capsys.readouterr().out.splitlines() == [str(SEEN), "a look"]


def test_a_rank_that_does_not_speak(capsys):
    with Screen(340, 0, quiet=True) as screen:
        screen.step(SEEN)
        screen.say("a look")
    assert capsys.readouterr().out == ""


def test_what_takes_long_before_a_step_is_told(capsys, monkeypatch):
    """torch.compile is minutes on a small machine: a log must not look as if nobody was there."""
    monkeypatch.setattr(lines, "PLAIN_SECONDS", 0.01)
    for quiet in (False, True):
        with Screen(340, 0, quiet) as screen, screen.waiting("compiling"):
            time.sleep(0.1)
        told = capsys.readouterr()
        assert told.out == "" and ("... compiling" in told.err) is not quiet


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_it_stays_in_its_place(monkeypatch):
    """What is said stays above it, markup or not."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    with Screen(340, 11) as screen:
        with screen.waiting("compiling"):
            screen.progress.refresh()
        assert "compiling" in out.getvalue()
        screen.step(SEEN)
        screen.say("sample: [bold]text[/nothing]")
    assert "sample: [bold]text[/nothing]" in out.getvalue()
    shown = out.getvalue()
    assert str(SEEN) in shown


@pytest.mark.parametrize("width", [80, 100, 120])
def test_on_a_narrow_terminal_no_part_is_cut(monkeypatch, width):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    with Screen(340, 11) as screen:
        screen.step(SEEN)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    for part in str(SEEN).split("  "):
        assert any(part in line for line in lines), part

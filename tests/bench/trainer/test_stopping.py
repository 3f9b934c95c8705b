import contextlib
import signal

import pytest

from bench.trainer import stopping as stopping_module
from bench.trainer.stopping import Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_asks_and_the_second_ends(number, capsys, monkeypatch):
    monkeypatch.setattr(stopping_module, "ONE_WISH_S", 0.0)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with Stopping() as stopping:
            assert not stopping.asked
            signal.raise_signal(number)
            assert stopping.asked == number.name
            assert "once more ends at once" in capsys.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_sigterm_that_is_told_twice_is_one_wish_and_ctrl_c_behind_it_another():
    before = [signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        with Stopping(quiet=True) as stopping:
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
            assert stopping.asked == "SIGTERM"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert not stopping.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number, again", [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGHUP, True)])
def test_only_sigterm_that_two_send_at_once_is_one_wish(number, again):
    """As Slurm does at a time limit: by the step's manager and by srun. It had ended a run without its checkpoint."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        with Stopping() as stopping:
            signal.raise_signal(number)
            with pytest.raises(KeyboardInterrupt) if again else contextlib.nullcontext():
                signal.raise_signal(number)
            assert stopping.asked == number.name
    finally:
        signal.signal(number, before)


def test_sigterm_after_ctrl_c_is_another_wish():
    before = [signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with Stopping():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)

"""Threads that work before the clock starts: told of those that are a variant's own, and do so for its call."""

import threading
import time

import pytest
import torch

from bench.core.case import Case, draw
from bench.core.shared import stored
from bench.core.variants import discover, find
from bench.machine.devices import WALL
from bench.trial import ahead, room
from bench.trial.ahead import Ahead

WORK_S = 0.01


class Helper:
    """A thread that turns while it is told to."""

    def __init__(self) -> None:
        self.works, self.over = threading.Event(), False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.over:
            if self.works.wait(0.01):
                sum(range(100))

    def end(self) -> None:
        self.over = True
        self.works.set()
        self.thread.join()


@pytest.fixture
def helper():
    helpers = []

    def make():
        helpers.append(Helper())
        return helpers[-1]

    yield make
    for each in helpers:
        each.end()


def turns(watch: Ahead, prepares, rests=lambda: None, count=ahead.FEWEST, call_s=WORK_S) -> str:
    """What is said of so many turns of one call. What is done before it, and while others have their turns."""
    watch.end()
    for _ in range(count):
        rests()
        time.sleep(ahead.RESTED_S)
        watch.begin()
        watch.given()
        prepares()
        watch.starts()
        watch.took(call_s)
        watch.end()
    return watch.evidence()


def works(helper: Helper) -> None:
    helper.works.set()
    time.sleep(4 * WORK_S)  # another one's turn of the interpreter, too
    helper.works.clear()


def test_a_thread_of_its_own_that_works_before_the_call_is_told(helper):
    watch = Ahead()
    with watch.born():
        mine = helper()
    assert "ms before each of 3 calls began" in turns(watch, lambda: works(mine), call_s=WORK_S / 10)


def test_threads_that_were_there_before_it_are_none_of_its_own(helper):
    others, watch = helper(), Ahead()
    with watch.born():
        helper()
    assert turns(watch, lambda: works(others), call_s=WORK_S / 10) == ""


def test_a_pool_that_always_waits_by_turning_is_not_told(helper):
    watch = Ahead()
    with watch.born():
        mine = helper()
    mine.works.set()
    assert turns(watch, lambda: time.sleep(WORK_S), call_s=WORK_S) == ""


def test_what_is_little_beside_a_call_is_not_told_and_two_calls_tell_nothing(helper):
    watch = Ahead()
    with watch.born():
        mine = helper()
    assert turns(watch, lambda: works(mine), count=ahead.FEWEST - 1, call_s=WORK_S / 10) == ""
    assert turns(watch, lambda: works(mine), count=1, call_s=100 * WORK_S) == ""


def test_calls_that_follow_at_once_are_not_looked_at(helper):
    """A pool may wait for the next by turning."""
    watch = Ahead()
    with watch.born():
        mine = helper()
    for _ in range(ahead.FEWEST):
        watch.end()
        watch.begin()
        watch.given()
        works(mine)
        watch.starts()
        watch.took(0.0)
    assert (watch.calls, watch.evidence()) == (0, "")


TIMED = Case("residual", "forward", {"N": 3000, "dtype": "fp32"}, "timed", seed=3)


def test_outputs_that_are_written_before_the_clock_starts_are_told(monkeypatch):
    """While inputs are brought into the cache."""
    made = room.Room(find(discover(), "residual", "torch.eager"), room.Setting(threads=1))
    box, given = stored(draw(TIMED))
    made.ready(TIMED, [given], seed=1)
    said = []
    for touched in (room.touch, lambda arena: torch.add(*arena.inputs.values(), out=arena.outputs["out"])):
        monkeypatch.setattr(room, "touch", touched)
        made.begin(WALL)
        made.call(0, 5, cold=False)
        said.append(made.end()["changed"])
    box.close()
    assert ["was written before the call" in each for each in said] == [False, True]


def test_a_pool_that_pytorch_uses_too_is_nobodys_own(monkeypatch):
    """Where a kernel asks the OpenMP runtime that is there for its threads."""
    made = room.Room(find(discover(), "residual", "torch.eager"), room.Setting(threads=1))
    monkeypatch.setattr(made.ahead, "evidence", lambda: "worked")
    monkeypatch.setattr(room.ran, "brought", lambda before: ["a.so"])
    said = []
    for now, asks in ((1, True), (1, False), (2, True)):
        made.runtimes = 1
        monkeypatch.setattr(room.facts, "openmp_runtimes", lambda now=now: now)
        monkeypatch.setattr(room.ran, "wants_openmp", lambda library, asks=asks: asks)
        said.append(made._worked_ahead())
    assert said == ["", "worked", "worked"]

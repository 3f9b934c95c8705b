"""The judge: truth in its own process, which is begun anew where somebody ends it."""

import os
import signal

import pytest

from bench.core.arena import Arena
from bench.core.case import Case, one
from bench.core.process import ProcessFailed
from bench.core.shared import Box, opened, values_in
from bench.core.variants import discover, find
from bench.trial.judge import Handed, Judge

CASE = Case("residual", "forward", {"N": 1000, "dtype": "fp32"}, "test", seed=4)
EAGER = find(discover(), "residual", "torch.eager")


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def handed(judge: Judge, change=lambda out: None, seed: int = 0) -> tuple[Box, Handed]:
    """What an honest call leaves, changed."""
    given = judge.given(CASE)
    values = values_in(opened(given.path, given.size), given.table)
    arena = Arena(CASE, seed=7)
    arena.load(values, seed)
    arena.reset(seed=9)
    out = one(arena.outputs["out"])
    out.copy_(one(arena.inputs["a"]) + one(arena.inputs["b"]))
    probes = [p.plain() for p in arena.probe()]
    change(out)
    box = Box(arena.size())
    arena.hand_back(box.bytes)
    return box, Handed(box.path, box.size, 0, None, 7, 9, probes)


def tail(out):
    out[-1] += 1e-3


def outside(out):
    out.as_strided((1,), (1,), out.storage_offset() + 1000)[0] = 1


def later(out):
    out.add_(1)


@pytest.mark.parametrize(("change", "check"), [(lambda out: None, "ok"), (outside, "out_of_bounds"), (later, "late")])
def test_it_looks_at_everything_that_is_handed_back(judge, change, check):
    judge.prepare([CASE], EAGER)
    box, left = handed(judge, change)
    assert judge.judge(CASE, left).check == check
    box.close()


def test_one_wrong_element_is_enough(judge):
    judge.prepare([CASE], EAGER)
    box, left = handed(judge, tail)
    quiet = Handed(left.path, left.size, 0, None, 7, 9, [])
    found = judge.judge(CASE, quiet)
    assert found.check == "inaccurate" and "[999]" in found.evidence
    box.close()


def test_contents_that_a_seed_makes_have_their_own_truth(judge):
    timed = Case(CASE.layer, CASE.phase, CASE.shape, "timed", seed=1)
    given = judge.pool(timed, EAGER, [5, 6], [(1, 123)])
    assert len(given) == 2
    values = values_in(opened(given[1].path, given[1].size), given[1].table)
    arena = Arena(timed, seed=7)
    arena.load(values, 123)
    arena.reset(seed=9)
    one(arena.outputs["out"]).copy_(one(arena.inputs["a"]) + one(arena.inputs["b"]))
    box = Box(arena.size())
    arena.hand_back(box.bytes)
    left = Handed(box.path, box.size, 0, None, 7, 9, [])
    assert judge.judge(timed, left, (1, 123)).ok
    arena.load(values, 124)  # other contents than it says
    arena.hand_back(box.bytes)
    assert judge.judge(timed, left, (1, 123)).check == "input_changed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_judge_that_somebody_ends_or_stops_goes_on(judge, number):
    judge.prepare([CASE], EAGER)
    box, left = handed(judge)
    assert judge.judge(CASE, left).ok
    os.kill(judge.start().process.pid, number)
    assert judge.judge(CASE, left).ok
    box.close()


def test_what_a_killed_judge_had_drawn_is_drawn_again(judge):
    judge.prepare([CASE], EAGER)
    before = judge.given(CASE)
    process = judge.start().process
    os.kill(process.pid, signal.SIGKILL)
    process.join(5)
    with pytest.raises(OSError):
        opened(before.path, before.size)
    box, left = handed(judge)
    assert judge.judge(CASE, left).ok
    box.close()


def test_what_cannot_be_drawn_is_nobodys_fault_but_an_error(judge):
    with pytest.raises(ProcessFailed, match="the truth could not be worked out"):
        judge.pool(Case("residual", "forward", {"M": 1, "dtype": "fp32"}, "no such size"), EAGER, [1])

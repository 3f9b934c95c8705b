"""Learning rates by hand."""

import math

import pytest

from bench.trainer import SCHEDULES
from bench.trainer.schedule import Schedule


def test_cosine():
    lr = Schedule("cosine", 2.0, 110, warmup=10, final=0.1)
    assert [lr(0), lr(4), lr(9)] == pytest.approx([0.2, 1.0, 2.0])
    assert lr(10) == 2.0
    assert lr(60) == pytest.approx(0.2 + 0.5 * 1.8)  # half way
    assert lr(35) == pytest.approx(0.2 + 0.5 * (1 + math.cos(math.pi / 4)) * 1.8)
    assert lr(110) == pytest.approx(0.2)
    assert lr(500) == pytest.approx(0.2)


def test_linear():
    lr = Schedule("linear", 1.0, 100, warmup=20, final=0.5)
    assert [lr(0), lr(19), lr(20), lr(60), lr(100)] == pytest.approx([0.05, 1.0, 1.0, 0.75, 0.5])


def test_wsd_is_constant_for_four_fifths_and_then_falls_by_a_root():
    lr = Schedule("wsd", 1.0, 100, warmup=10)
    assert [lr(0), lr(9), lr(10), lr(79), lr(80)] == pytest.approx([0.1, 1.0, 1.0, 1.0, 1.0])
    assert lr(85) == pytest.approx(1 - math.sqrt(0.25))
    assert lr(100) == pytest.approx(0.0)


def test_constant_has_no_warm_up():
    lr = Schedule("constant", 0.3, 10, warmup=5, final=0.1)
    assert {lr(step) for step in range(12)} == {0.3}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (3, 5), (7, 7), (2000, 13)])
def test_it_never_leaves_its_bounds(kind, steps, warmup):
    lr = Schedule(kind, 1e-3, steps, warmup, 0.25)
    rates = [lr(step) for step in range(steps)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert all(after <= before for before, after in zip(rates[warmup:], rates[warmup + 1 :], strict=False))

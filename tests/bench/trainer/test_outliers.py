import math
import random

import numpy as np
import pytest

from bench.trainer import WINDOW
from bench.trainer.outliers import Outliers


def test_z_scores_are_among_the_last_values_and_itself():
    draw = random.Random(0)
    values = [draw.gauss(1e4, 1e-3) for _ in range(2 * WINDOW)]  # far from 0: sums of squares would lose the difference
    window = Outliers()
    for i, value in enumerate(values):
        z = window.add(value)
        if i < WINDOW:
            assert z is None
        else:
            last = np.array(values[i - WINDOW + 1 : i + 1], dtype=np.longdouble)
            assert z == pytest.approx(float((value - last.mean()) / last.std()), rel=1e-5)


def test_an_outlier_stays_and_what_is_not_finite_does_not():
    window = Outliers([1.0, 2.0] * (WINDOW // 2))
    assert window.add(math.nan) is None
    assert window.add(math.inf) is None
    assert math.nan not in window.state() and math.inf not in window.state()
    z = window.add(100.0)
    assert z is not None and z > 10
    assert 100.0 in window.state()


def test_equal_values_have_no_outliers():
    assert Outliers([3.0] * WINDOW).add(3.0) == 0.0


def test_its_state_is_all_of_it():
    draw = random.Random(1)
    window = Outliers()
    for _ in range(WINDOW + 40):
        window.add(draw.random())
    again = Outliers(window.state())
    for _ in range(20):
        value = draw.random()
        assert window.add(value) == again.add(value)

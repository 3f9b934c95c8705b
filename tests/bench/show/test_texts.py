"""Numbers as people read them."""

import math

import pytest

from bench.show.texts import DASH, multiple, number


@pytest.mark.parametrize(
    "value, said",
    [(0.01234, "0.0123"), (1.0, "1"), (45.67, "45.7"), (999.4, "999"), (999.6, "1,000"), (1023.4, "1,023")],
)
def test_three_digits_and_no_power_of_ten(value, said):
    assert number(value * 1e6, 1e6) == said and multiple(value) == f"{said}x"


def test_what_is_no_number():
    assert number(None, 1.0) == multiple(None) == DASH and multiple(math.inf) == "infx"

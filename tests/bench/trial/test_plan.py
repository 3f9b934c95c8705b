"""What is asked for by name."""

import pytest

from bench.cli import CannotGoOn
from bench.trial.plan import _named

KNOWN = ["cpu.simd", "cpu.naive", "cuda.naive", "torch.eager", "cpu.simd"]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("cpu.*", ["cpu.naive", "cpu.simd"]),
        ("*.naive,cpu.?aive,torch.eager", ["cpu.naive", "cuda.naive", "torch.eager"]),
        ("torch.eager,*", ["torch.eager", "cpu.naive", "cpu.simd", "cuda.naive"]),
        ("cpu.fast", ["cpu.fast"]),  # not a pattern: whether there is such a variant is asked elsewhere
    ],
)
def test_patterns_stand_for_every_variant_that_they_match_once(only, names):
    assert list(_named(only, KNOWN)) == names


def test_a_pattern_that_matches_nothing_says_what_there_is():
    with pytest.raises(CannotGoOn, match=r"'gpu\.\*' \(known: cpu.naive, cpu.simd, cuda.naive, torch.eager\)"):
        list(_named("gpu.*", KNOWN))

"""What a session asks of processes beside proving and timing."""

import pytest

from bench.core.case import Case
from bench.core.variants import discover, find
from bench.trial import beside
from bench.trial.room import Setting

SHARED = find(discover(), "attention", "cuda.shared")


def case(head_size: int) -> Case:
    shape = dict(B=1, T=64, NH=2, NKV=2, HS=head_size, causal=True, dtype="bf16")
    return Case("attention", "forward", shape, "test")


@pytest.mark.parametrize(("head_size", "says"), [(64, ""), (256, "176")])
def test_a_kernel_that_cannot_be_launched_at_a_shape_says_so_without_a_gpu(head_size, says):
    told = beside.cannot_launch(SHARED, case(head_size), Setting())
    assert says in told and bool(told) == bool(says)

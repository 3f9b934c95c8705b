"""torch.cublas is for a GPU; what it computes, torch computes on a CPU too."""

import pytest

from bench.core import variants
from bench.core.arena import Arena
from bench.core.case import cases_of
from bench.trial import checks, truth
from reference.contract import PHASES

VARIANTS = variants.discover()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("phase", PHASES)
def test_it_is_right_and_leaves_no_result_elsewhere(dtype, phase):
    module = variants.find(VARIANTS, "matmul", "torch.cublas").load()
    yardstick = variants.find(VARIANTS, "matmul", "torch.eager")
    wrong: dict[str, str] = {}
    for case in cases_of("matmul", phase, dtype, [0, 1], thorough=False):
        told = truth.brief(case, yardstick)
        arena = Arena(case)
        arena.load(told.contents.drawn)
        arena.reset()
        assert arena.call(getattr(module, phase)) is None
        verdict = checks.inspect(arena, told)
        wrong |= {} if verdict.ok else {str(case): verdict.evidence}
    assert wrong == {}

"""One call of a variant on this CPU, judged as a proof judges it."""

import pytest

from bench.core import variants
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case
from bench.trial import checks
from tests.kernels.briefs import VARIANTS, brief_of


def right(layer: str, name: str, phase: str, shape: dict) -> bool:
    """Whether all outputs of one case are right. Skips the test, with the reason, where the variant cannot run here."""
    variant = variants.find(VARIANTS, layer, name)
    if reason := variants.unavailable(variant, "cpu", shape["dtype"]):
        pytest.skip(reason)
    module = variant.load()
    case = Case(layer, phase, shape, "test")
    brief = brief_of(case)
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(brief.values)
    arena.reset()
    arena.call(getattr(module, phase))
    return checks.inspect(arena, brief).ok

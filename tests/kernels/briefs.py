"""Draws of a case with their truth and yards, for tests that try one kernel after the other on the same few cases."""

import functools
import json

from bench.core import variants
from bench.core.case import Case
from bench.trial import truth
from bench.trial.truth import Brief

VARIANTS = variants.discover()
KEPT = 128  # briefs of small cases: a sweep over windows has some 70


def brief_of(case: Case) -> Brief:
    """Worked out once, as long as it is among the last; not to be changed."""
    return _brief_of(case.layer, case.phase, json.dumps(case.shape, sort_keys=True), case.seed, case.edit)


@functools.lru_cache(maxsize=KEPT)
def _brief_of(layer: str, phase: str, shape: str, seed: int, edit: str | None) -> Brief:
    case = Case(layer, phase, json.loads(shape), "test", seed, edit)
    return truth.brief(case, variants.find(VARIANTS, layer, "torch.eager"))

"""A few layers' variants on a tiny shape, for pytest-benchmark's tables, JSON and comparisons (see conftest.py)."""

import itertools

import pytest


def test_kernel(layer, phase, variant, race, replay, benchmark):
    timing = race(layer, phase)
    contestant = next(c for c in timing.contestants if c.variant.name == variant and not c.control)
    assert contestant.running, f"{contestant.status}: {contestant.evidence}"
    benchmark.group = f"{layer} {phase}, gpt2-tiny, fp32, warm, one thread"
    benchmark.extra_info.update(noise_floor=timing.noise_floor, shape=timing.case.shape, stopped=timing.stopped)
    seconds = list(itertools.chain(*contestant.samples["warm"]))
    replay(seconds)
    assert benchmark.stats.stats.data == pytest.approx(seconds, abs=1e-8)

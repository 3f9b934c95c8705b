"""The measurement of the parity gate's false alarms: honest trainings are counted, and a wrong one would be refused."""

import pytest

from tools import false_alarms_of_training as tool


@pytest.mark.slow
def test_one_seed_is_measured_and_told():
    row = tool.measure("llama2-tiny", "fp32", seconds=0.01, seed=3)
    assert row.seeds == 1 and len(row.all) == 5 and not row.refused
    assert 0 < max(row.all) < 1
    page = tool.page([row], 0.01)
    assert "5 honest trainings of 1 seeds, 0 of them refused" in page and "llama2-tiny" in page


@pytest.mark.slow
def test_a_stand_in_that_is_off_is_refused(monkeypatch):
    """Each gradient's norm by a thousandth, which fp32's band is a hundred times narrower than."""
    honest = tool.stand_ins

    def spoilt(job):
        train = honest(job)["turned round"]

        def off(seed, batches):
            run = train(seed, batches)
            return [{**s, "norms": {n: 1.001 * g for n, g in s["norms"].items()}} for s in run]

        return {"off": off}

    monkeypatch.setattr(tool, "stand_ins", spoilt)
    row = tool.measure("llama2-tiny", "fp32", seconds=0.01, seed=3)
    assert len(row.refused) == 1 and row.kinds == {"one parameter's gradient": 1} and max(row.all) > 1

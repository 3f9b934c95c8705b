"""The comparison: units of plain torch's error, not finite first, nothing that a NaN could slip through."""

import dataclasses

import pytest
import torch

from bench.core.arena import Arena
from bench.core.case import DTYPES, Case, draw, each, one
from bench.trial import truth as judge
from bench.trial.truth import K, Yard
from reference import contract


def yard(truth: torch.Tensor, max_error: float, rms_error: float) -> Yard:
    return Yard("out", truth.double().flatten(), None, tuple(truth.shape), max_error, rms_error, rms_error)


TRUTH = torch.linspace(-1, 1, 1001, dtype=torch.float64).reshape(77, 13)


@pytest.mark.parametrize(("times", "passes"), [(0.0, True), (1.0, True), (3.9, True), (4.5, False), (100.0, False)])
def test_the_limit_is_a_multiple_of_plain_torchs_error(times, passes):
    unit = 1e-5
    finding = judge.judge(TRUTH.float() + times * unit, yard(TRUTH, unit, unit))
    assert bool(finding.evidence) != passes
    assert finding.ratio == pytest.approx(times, rel=0.02, abs=0.01)


def test_one_wrong_element_among_many_is_found_and_named():
    got = TRUTH.float()
    got[40, 7] += 1e-2
    finding = judge.judge(got, yard(TRUTH, 1e-6, 1e-7))
    assert "[40, 7]" in finding.evidence


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ((slice(None), slice(-3, None)), "first at [0, 10], only the last 3 of axis 1"),
        ((slice(0, 2), slice(None)), "first at [0, 0], only the first 2 of axis 0"),
        ((slice(5, None, 8), slice(None)), "first at [5, 0], one in 8 along axis 0, from 5"),
        ((slice(None), slice(4, 7)), "only 4 to 6 of axis 1"),
        ((40, slice(None)), "only index 40 of axis 0"),
    ],
)
@pytest.mark.parametrize("bad", (1e-2, float("nan")))
def test_what_the_wrong_elements_have_in_common_is_told(where, said, bad):
    got = TRUTH.float()
    got[where] += bad
    evidence = judge.judge(got, yard(TRUTH, 1e-6, 1e-7)).evidence
    assert said in evidence


def test_where_an_output_was_not_written_is_told():
    left = torch.zeros(4, 8, dtype=torch.bool)
    left[:, -3:] = True
    assert judge.survivors(left) == "12 of 32 elements, the first at [0, 5], only the last 3 of axis 1,"
    assert judge.survivors(torch.ones(4, dtype=torch.bool)) == "100%"


def test_scattered_errors_have_nothing_in_common():
    got = TRUTH.float()
    got[[1, 2, 40, 76], [0, 5, 9, 12]] += 1e-2
    evidence = judge.judge(got, yard(TRUTH, 1e-6, 1e-7)).evidence
    assert "4 of 1001 are off, the first at [1, 0]" in evidence and "axis" not in evidence


def test_a_small_error_everywhere_is_found_by_the_rms():
    # One element of plain torch is far off, so the maximum alone would let this pass.
    finding = judge.judge(TRUTH.float() + 1e-4, yard(TRUTH, 1e-3, 1e-6))
    assert finding.evidence and finding.ratio > K


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_never_passes(bad):
    got = TRUTH.float()
    got[3, 5] = bad
    finding = judge.judge(got, yard(TRUTH, float("1e9"), float("1e9")))
    assert "not finite" in finding.evidence and "[3, 5]" in finding.evidence


def test_an_exact_yardstick_still_leaves_an_ulp():
    got = TRUTH.float()  # rounded once
    assert not judge.judge(got, yard(TRUTH, 0.0, 0.0)).evidence
    assert judge.judge(got * (1 + 6e-7), yard(TRUTH, 0.0, 0.0)).evidence


def test_plain_torch_itself_may_not_be_off_by_a_share_of_the_truth():
    # The yardstick is as wrong as the variant; the ratio is 1, yet nobody may be off by 20 %.
    wrong = dataclasses.replace(yard(TRUTH, 0.2, 0.2), formula_rms=1e-7)
    assert "truth's rms" in judge.judge(TRUTH.float() * 1.2, wrong).evidence


def test_zeros_do_not_pass_as_small_values():
    truth = torch.full((64, 50257), 2e-5, dtype=torch.float64)
    sampled = yard(truth, 3e-8, 2e-8)
    assert judge.judge(torch.zeros(64, 50257, dtype=torch.bfloat16), sampled).evidence


def test_an_overflow_in_plain_torch_is_no_licence(monkeypatch):
    case = Case("residual", "forward", {"N": 8, "dtype": "fp32"}, "test")
    values = draw(case)
    inf = {"out": torch.full((8,), float("inf"))}
    monkeypatch.setattr(judge, "_run_formula", lambda *_: inf)
    monkeypatch.setattr(judge, "_move_inputs", lambda *_: {})
    (found,) = judge.yards_of(case, values, None)
    assert (found.max_error, found.rms_error) == (0.0, 0.0)


def test_large_outputs_are_compared_by_a_fresh_random_sample(monkeypatch):
    monkeypatch.setattr(judge, "MAX_COMPARED", 100)
    case = Case("residual", "forward", {"N": 1000, "dtype": "fp32"}, "test")
    first, second = (judge.brief(case, None).yards[0] for _ in range(2))
    assert first.sample is not None and second.sample is not None
    assert len(first.truth) == 100 and not torch.equal(first.sample, second.sample)


@pytest.mark.parametrize("layer", contract.layer_names())
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_inputs_are_rounded_first_and_every_output_gets_a_yard(layer, dtype):
    module = contract.load(layer)
    for phase in contract.phases_of(module):
        case = Case(layer, phase, {**module.RAGGED[0], "dtype": dtype}, "test")
        found = judge.brief(case, None)
        for t in contract.pass_of(module, phase).inputs:
            for part in each(found.values[t.name]):
                assert part.dtype == DTYPES[t.dtype_in(case.shape)]
        arena = Arena(case)
        wanted = sum(len(b) if isinstance(b, list) else b is not None for b in arena.outputs.values())
        assert len(found.yards) == wanted
        assert all(y.truth.isfinite().all() for y in found.yards)


def test_the_same_seed_draws_the_same_tensors_and_another_does_not():
    case = Case("layernorm", "backward", {**contract.load("layernorm").RAGGED[0], "dtype": "fp32"}, "test", seed=7)
    cases = (case, case, dataclasses.replace(case, seed=8))
    first, second, other = (one(draw(c)["x"]) for c in cases)
    assert torch.equal(first, second) and not torch.equal(first, other)

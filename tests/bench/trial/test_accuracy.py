"""The comparison: whole outputs, in units of what errors may be, not finite first, nothing a NaN could slip through."""

from dataclasses import replace

import pytest
import torch

from bench.trial import accuracy
from bench.trial.accuracy import K_ONE, K, Limits, Size, Yard

EXACT = Limits()


def yard(truth: torch.Tensor, limits: Limits = EXACT, dtype: torch.dtype = torch.float32) -> Yard:
    return Yard("out", truth.double().flatten(), tuple(truth.shape), dtype, dtype, limits)


TRUTH = torch.linspace(-1, 1, 1001, dtype=torch.float64).reshape(77, 13)


NOISY = Limits(noise=1e-5, honest=Size(one=3.0, stretch=1.0, all=1.0, absolute=3e-5))  # errors of about 1e-5


# --- the limit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "passes"), [(0.0, True), (1.0, True), (3.9, True), (4.5, False), (100.0, False)])
def test_the_limit_is_a_multiple_of_the_yard(times, passes):
    finding = accuracy.judge(TRUTH.float() + times * 1e-5, yard(TRUTH, NOISY))
    assert bool(finding.evidence) != passes and (finding.check == "ok") == passes
    assert finding.ratio == pytest.approx(times, rel=0.02, abs=0.01)


@pytest.mark.parametrize(("times", "passes"), [(0.9, True), (1.1, False)])
def test_one_element_may_be_further_off_than_all(times, passes):
    got = TRUTH.float()
    got[40, 7] += times * K_ONE * 3e-5
    assert bool(accuracy.judge(got, yard(TRUTH, NOISY)).evidence) != passes


def test_one_wrong_element_among_many_is_found_and_named():
    got = TRUTH.float()
    got[40, 7] += 1e-2
    assert "[40, 7]" in accuracy.judge(got, yard(TRUTH, NOISY)).evidence


def cut_off(x: torch.Tensor) -> torch.Tensor:
    """fp32 to bf16 without its lower bits."""
    return (x.float().view(torch.int32) & -65536).view(torch.float32).bfloat16()


ROUNDED = torch.randn(77, 613, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(
    ("got", "side"),
    [
        (ROUNDED.bfloat16(), ""),
        (cut_off(ROUNDED), "towards 0"),
        (cut_off(ROUNDED * (1 + 2**-7)), "away from 0"),
        (torch.cat([ROUNDED[:15].bfloat16(), cut_off(ROUNDED[15:])]), "towards 0"),
        (cut_off(ROUNDED * (1 + torch.rand_like(ROUNDED) * 2**-7)), ""),  # to one side or the other, by chance
    ],
    ids=["nearest", "cut off", "up", "most of it", "either way"],
)
def test_errors_of_rounding_lean_to_no_side(got, side):
    narrow = Yard("out", ROUNDED.float().flatten(), tuple(ROUNDED.shape), torch.bfloat16, torch.bfloat16)
    finding = accuracy.judge(got, narrow)
    assert finding.ratio < K  # no error is too large
    assert finding.check == ("inaccurate" if side else "ok") and side in finding.evidence
    assert not accuracy.judge(got, narrow, sane=False).evidence  # of an edit's values
    few = Yard("out", ROUNDED[-1:].float().flatten(), (613,), torch.bfloat16, torch.bfloat16)
    assert not accuracy.judge(got[-1:], few).evidence


def test_each_stretch_of_positions_is_held_to_its_own_noise():
    """Two samples of 128 positions: the first half of them is a hundred times as noisy as the second."""
    gen = torch.Generator().manual_seed(3)
    truth, noise = (torch.randn(2, 128, 96, generator=gen, dtype=torch.float64) for _ in range(2))
    noise[:, 64:] /= 100
    one = Size(one=5.0, stretch=1.0, all=1.0, absolute=5e-4)
    spans = (Limits(1e-4, one), Limits(1e-6, replace(one, absolute=5e-6)))
    for held, times, passes in ((spans, 1, True), (spans, 10, False), ((), 10, True)):
        whole = replace(yard(truth, Limits(1e-4, one, spans=held)), positions=True)
        got = truth + 1e-4 * noise
        got[1, 64:] = truth[1, 64:] + times * 1e-4 * noise[1, 64:]
        finding = accuracy.judge(got.float(), whole)
        assert (finding.check == "ok") == passes and ("out[1:2, 64:128]" in finding.evidence) != passes


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_of_whole_numbers_nothing_but_the_truth_will_do(dtype):
    truth = (torch.arange(3 * accuracy.BLOCK + 77) % 255 - 127).double()
    exact = Yard("q", truth, (len(truth),), dtype, torch.float32)
    assert accuracy.judge(truth.to(dtype), exact) == accuracy.Finding("q", 0.0)
    for at in (0, accuracy.BLOCK, len(truth) - 1):
        for by in (1, -1):
            got = truth.to(dtype)
            got[at] = got[at] + by if abs(int(got[at] + by)) <= 127 else 0
            finding = accuracy.judge(got, exact)
            assert finding.check == "inaccurate" and f"the first {int(got[at])} instead" in finding.evidence
            assert f"[{at}]" in finding.evidence and "1 of" in finding.evidence


def test_every_element_is_compared():
    truth = torch.randn(3 * accuracy.BLOCK + 77, dtype=torch.float64)
    honest = truth.float()
    for at in (0, 1, accuracy.BLOCK - 1, accuracy.BLOCK, 2 * accuracy.BLOCK + 5, len(truth) - 78, len(truth) - 1):
        got = honest.clone()
        got[at] += 1e-3
        assert f"[{at}]" in accuracy.judge(got, yard(truth)).evidence
    assert not accuracy.judge(honest, yard(truth)).evidence


@pytest.mark.parametrize("rows", [slice(3, 4), slice(76, 77), slice(0, 1)])
def test_small_errors_in_one_row_are_found_where_the_whole_and_the_largest_are_not(rows):
    truth = torch.rand(77, 769, dtype=torch.float64) + 1
    got = truth.bfloat16().float()
    got[rows] *= 1.01
    finding = accuracy.judge(got.bfloat16(), yard(truth, dtype=torch.bfloat16))
    assert f"all over [{rows.start}, 0] to [{rows.start}, 768]" in finding.evidence


def test_a_small_error_everywhere_is_found_by_the_rms():
    # One element of plain torch is far off, so the maximum alone would let this pass.
    limits = Limits(noise=1e-6, honest=Size(one=1000.0, stretch=1.0, all=1.0, absolute=1e-3))
    finding = accuracy.judge(TRUTH.float() + 1e-4, yard(TRUTH, limits))
    assert finding.ratio > K and "small errors all over it" in finding.evidence


def test_a_large_value_may_be_no_further_off_than_the_largest_error_seen():
    # In units of the element, plain torch's worst error is that of an element near 0, and much is allowed by it.
    limits = Limits(noise=1e-8, honest=Size(one=20.0, stretch=1.0, all=1.0, absolute=1e-7))
    got = TRUTH.float()
    got[0, 0] += 3e-6
    assert "[0, 0]" in accuracy.judge(got, yard(TRUTH, limits)).evidence


def test_an_exact_yardstick_still_leaves_an_ulp():
    got = TRUTH.float()  # rounded once
    assert not accuracy.judge(got, yard(TRUTH)).evidence
    assert accuracy.judge(got * (1 + 6e-7), yard(TRUTH)).evidence


def test_plain_torch_itself_may_not_be_off_by_a_share_of_the_truth():
    # The yardstick is as wrong as the variant; the ratio is 1, yet nobody may be off by 20 %.
    wrong = Limits(noise=0.2, honest=Size(1.0, 1.0, 1.0, 0.2), formula_rms=1e-7)
    finding = accuracy.judge(TRUTH.float() * 1.2, yard(TRUTH, wrong))
    assert "truth's rms" in finding.evidence and finding.check == "inaccurate"
    assert not accuracy.judge(TRUTH.float() * 1.2, yard(TRUTH, wrong), sane=False).evidence


def test_zeros_do_not_pass_as_small_values():
    truth = torch.full((64, 50257), 2e-5, dtype=torch.float64)
    assert accuracy.judge(torch.zeros(64, 50257, dtype=torch.bfloat16), yard(truth, dtype=torch.bfloat16)).evidence


def test_a_scalar_and_nothing_at_all_are_outputs_too():
    assert not accuracy.judge(torch.tensor(2.0), yard(torch.tensor(2.0))).evidence
    assert accuracy.judge(torch.tensor(2.001), yard(torch.tensor(2.0))).evidence
    assert not accuracy.judge(torch.zeros(0, 3), yard(torch.zeros(0, 3))).evidence


NAN, INF = float("nan"), float("inf")


# --- not finite -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_not_finite_never_passes(bad):
    got = TRUTH.float()
    got[3, 5] = bad
    huge = Limits(1e9, Size(1e9, 1e9, 1e9, 1e9))
    finding = accuracy.judge(got, yard(TRUTH, huge))
    assert "not finite" in finding.evidence and "[3, 5]" in finding.evidence and finding.check == "not_finite"


@pytest.mark.parametrize("right", [NAN, INF, -INF])
@pytest.mark.parametrize("got", [NAN, INF, -INF, 0.0, 3e38])
def test_where_the_truth_is_not_finite_the_same_must_come_out(right, got):
    truth, out = TRUTH.clone(), TRUTH.float()
    truth[3, 5], out[3, 5] = right, got
    finding = accuracy.judge(out, yard(truth))
    same = torch.equal(torch.tensor([right]).nan_to_num(7), torch.tensor([got]).nan_to_num(7))
    assert (finding.check == "ok") == (finding.evidence == "") == same
    if not same:
        assert finding.check == "not_finite" and "not finite" in finding.evidence and "[3, 5]" in finding.evidence
    out[40, 7] += 1e-2  # and the others are compared as before
    assert accuracy.judge(out, yard(truth)).evidence


def test_infinity_is_right_only_where_the_truth_rounds_to_it_in_the_outputs_dtype():
    truth = torch.tensor([1.0, 1e5, -1e5, 65504.0])
    as_half = yard(truth, dtype=torch.float16)
    assert not accuracy.judge(truth.half(), as_half).evidence  # inf, -inf
    for wrong in ([1, 65504, -INF, 65504], [1, -INF, -INF, 65504], [1, INF, -INF, INF]):
        assert accuracy.judge(torch.tensor(wrong).half(), as_half).evidence, wrong
    assert accuracy.judge(truth.half().float(), yard(truth)).evidence  # fp32 holds 1e5


# --- evidence -------------------------------------------------------------------------------------------------------


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
    evidence = accuracy.judge(got, yard(TRUTH, NOISY)).evidence
    assert said in evidence


def test_where_an_output_was_not_written_is_told():
    left = torch.zeros(4, 8, dtype=torch.bool)
    left[:, -3:] = True
    assert accuracy.survivors(left) == "12 of 32 elements, the first at [0, 5], only the last 3 of axis 1,"
    assert accuracy.survivors(torch.ones(4, dtype=torch.bool)) == "100%"


def test_scattered_errors_have_nothing_in_common():
    got = TRUTH.float()
    got[[1, 2, 40, 76], [0, 5, 9, 12]] += 1e-2
    evidence = accuracy.judge(got, yard(TRUTH, NOISY)).evidence
    assert "4 of 1001 are off, the first at [1, 0]" in evidence and "axis" not in evidence

"""Formulas in pieces: the same truth for every layer, within a bound of memory, and no piece where a layer has none."""

import pytest
import torch

from bench.core.case import Case, Values, draw, each, one
from bench.core.contents import Contents
from bench.trial import cuts
from bench.trial.cuts import Cut, Formula, Recomputed, cut_of
from reference import contract
from reference.models import MODELS
from tests.fake_gpu import FakeGpu

GPT2 = MODELS["gpt2-124m"]
CUT = {
    "attention": Cut("B"),
    "cross_entropy": Cut("B"),
    "decode_attention": Cut("B"),
    "embedding": Cut("B"),
    "fused_classifier": Cut("B"),
    "gelu": Cut("N"),
    "layernorm": Cut("B"),
    "matmul": Cut("M"),
    "q8_matmul": Cut("M"),
    "q8_quantise": Cut("M"),
    "residual": Cut("N"),
    "residual_layernorm": Cut("B"),
    "residual_rmsnorm": Cut("B"),
    "rmsnorm": Cut("B"),
    "rope": Cut("B"),
    "sampling": Cut("B"),
    "softmax": Cut("R", 1024),  # the rows of one causal mask
    "swiglu": Cut("M"),
    "adamw": None,
    "global_norm": None,
}


def timed(layer: str, phase: str, B: int = 64) -> Case:
    module = contract.load(layer)
    shape = next(iter(GPT2.shapes(layer, B, 1024).values())).shape
    return Case(layer, phase, contract.overwriting(module, phase, shape, "bf16"), "timed")


@pytest.mark.parametrize("layer", contract.layer_names())
def test_every_layer_is_cut_where_its_rows_are_their_own(layer):
    for phase in contract.phases_of(contract.load(layer)):
        assert cut_of(timed(layer, phase)) == CUT.get(layer), phase


def small(layer: str, phase: str) -> Case:
    """Few rows of a shape, an odd number of granules."""
    module = contract.load(layer)
    shape = contract.sliced(module, timed(layer, phase).shape, 1 << 12)
    if layer == "softmax":
        shape |= {"S": 16, "R": 16 * 5}
    elif cut := CUT[layer]:
        shape[cut.axis] = 5
    return Case(layer, phase, shape, "small", seed=2)


@pytest.mark.parametrize("layer", [name for name, cut in CUT.items() if cut])
def test_pieces_put_together_are_the_whole(layer):
    for phase in contract.phases_of(contract.load(layer)):
        case = small(layer, phase)
        cut = cut_of(case)
        assert cut
        contents = Contents(case, draw(case), seed=5)
        whole = cuts.truth(case, contents.whole())
        found = Formula(case, contents, cuts.truth, cut, 2 * cut.granule).collect()
        assert found is not None and found.keys() == whole.keys()
        for name, value in whole.items():
            for a, b in zip(each(found[name]), each(value), strict=True):
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-12), name


def test_a_layer_whose_rows_depend_on_each_other_is_not_cut(monkeypatch):
    module = contract.load("gelu")
    monkeypatch.setattr(module, "forward", lambda x: {"out": x / x.abs().amax()})
    cuts._cut_of.cache_clear()
    assert cut_of(timed("gelu", "forward")) is None
    cuts._cut_of.cache_clear()


def test_a_sum_that_is_no_sum_over_rows_is_not_cut(monkeypatch):
    module, honest = contract.load("layernorm"), contract.load("layernorm").backward
    monkeypatch.setattr(module, "backward", lambda *a: honest(*a) | {"dbias": a[0].amax((0, 1))})
    cuts._cut_of.cache_clear()
    assert cut_of(timed("layernorm", "backward")) is None
    cuts._cut_of.cache_clear()


def lists(*count: int) -> Case:
    module = contract.load("adamw")
    shape = module._shape([(n, 3) if n % 2 else (n,) for n in count]) | {"dtype": "bf16"}
    return Case("adamw", "forward", shape, "lists", seed=2)


def test_lists_are_cut_into_their_tensors_and_those_into_rows():
    case = lists(5, 8, 1, 4, 7)
    name = cuts.list_of(case)
    assert name == "tensors" and cuts.list_of(timed("global_norm", "forward")) is None
    contents = Contents(case, draw(case), seed=5)
    whole = cuts.truth(case, contents.whole())
    held: list[cuts.OfLists] = []
    for i, sizes in enumerate(case.shape[name]):
        formula = cuts.in_lists(case, contents, cuts.truth, name, i, 4, held=held, block=6)
        for start, stop, found in formula.pieces():
            assert found is not None and held == [formula]
            for out, rows in found.items():
                assert torch.equal(one(rows), each(whole[out])[i][start:stop]), (out, i, start)
        assert formula.total == sizes[0]


@pytest.mark.parametrize("mixed", ["along the list", "along a tensor"])
def test_lists_whose_tensors_or_rows_depend_on_each_other_are_not_cut(monkeypatch, mixed):
    module, honest = contract.load("adamw"), contract.load("adamw").forward

    def forward(grads, *rest, **kept):
        largest = max(g.abs().amax() for g in grads)
        return honest([g / (largest if mixed == "along the list" else g.abs().amax()) for g in grads], *rest, **kept)

    monkeypatch.setattr(module, "forward", forward)
    cuts._list_of.cache_clear()
    assert cuts.list_of(lists(5, 8, 1)) is None
    cuts._list_of.cache_clear()


@pytest.fixture
def gpu():
    made = FakeGpu()
    yield made
    made.close()


def test_a_piece_is_as_large_as_memory_allows_and_never_less_than_a_granule(gpu):
    case = Case("attention", "forward", dict(B=16, T=128, NH=4, NKV=4, HS=16, causal=True, dtype="fp32"), "")
    contents = Contents(case, draw(case))
    cut = cut_of(case)
    assert cut

    def peak(rows: int) -> int:
        before = gpu.memory()[0]
        gpu.forget_peak()
        for _ in Formula(case, contents, cuts.truth, cut, rows).pieces():
            pass
        return gpu.memory()[1] - before

    budget = peak(4) + 1
    rows = cuts.rows_within(case, contents, cuts.truth, cut, gpu, budget)
    assert 3 <= rows <= 4 and peak(rows) <= budget < peak(8)
    assert cuts.rows_within(case, contents, cuts.truth, cut, gpu, 1) == 1
    assert cuts.rows_within(case, contents, cuts.truth, cut, gpu, 1 << 40) == 16


def test_a_piece_that_finds_no_memory_is_halved():
    case = small("layernorm", "backward")
    contents = Contents(case, draw(case))
    ran: list[int] = []
    most = 2

    def run(case: Case, values: Values) -> Values:
        ran.append(case.shape["B"])
        if case.shape["B"] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cuts.truth(case, values)

    found = Formula(case, contents, run, Cut("B"), 5).collect()
    whole = cuts.truth(case, contents.whole())
    assert found is not None and ran == [5, 2, 3, 1, 2]
    assert all(torch.allclose(torch.as_tensor(found[name]), torch.as_tensor(whole[name])) for name in whole)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        Formula(case, contents, run, Cut("B"), 5).collect()


def test_truth_that_is_not_kept_is_the_same_wherever_one_looks():
    case = small("fused_classifier", "forward")
    contents = Contents(case, draw(case), seed=3)
    ran: list[int] = []

    def run(case: Case, values: Values) -> Values:
        ran.append(case.shape["B"])
        return cuts.truth(case, values)

    logits = one(cuts.truth(case, contents.whole())["logits"])
    whole, sizes = logits.float().flatten(), tuple(logits.shape)
    formula = Formula(case, contents, run, Cut("B"), 2)
    again = Recomputed(formula, "logits", torch.float32, sizes, torch.device("cpu"))
    assert len(again) == again.numel() == len(whole) and again.dtype == torch.float32
    row = len(whole) // 5
    for start, stop in [
        (0, 10),
        (row - 3, row + 3),
        (2 * row - 5, 2 * row + 5),
        (0, len(whole)),
        (len(whole) - 7, None),
    ]:
        assert torch.equal(again[start:stop], whole[start:stop]), (start, stop)
    assert again[4 * row + 1] == whole[4 * row + 1]
    assert again.rms_and_peak == pytest.approx((float(whole.double().square().mean().sqrt()), float(whole.abs().max())))
    ran.clear()
    for start in range(0, len(whole), 1000):
        assert len(again[start : start + 1000])
    assert ran == [2, 2, 1], "a look along it works out each piece once"

"""Structured cases catch the mistakes they were made for: each careless formula below fails the case named beside it.

A case that no mistake fails would prove nothing. The formulas are right on plain random numbers, or nearly so.
"""

import math
from collections.abc import Callable

import pytest
import torch

from bench.core.case import Case, Values, each, one, run_truth
from bench.core.case import draw as draw_case
from bench.trial import accuracy, truth
from reference import contract

LAYERS = ("attention", "matmul", "embedding", "adamw", "global_norm")


def case(layer: str, edit: str | None, shape: int = 0, phase: str = "forward", dtype: str = "fp32") -> Case:
    module = contract.load(layer)
    sizes = contract.overwriting(module, phase, module.RAGGED[shape], dtype)
    return Case(layer, phase, sizes, edit or "plain", 1, edit)


def right(c: Case, careless: Callable[..., Values]) -> bool:
    """Whether a formula in fp32 passes a case, by the proof's own yards."""
    values = draw_case(c)
    p = contract.pass_of(c.module, c.phase)
    got = careless(*(values[t.name] for t in p.inputs), *p.scalars_in(c.shape))
    yards = truth.yards_of(c, values, None)
    return not any(accuracy.judge(one(got[y.name]), y, sane=c.edit is None).evidence for y in yards)


# --- attention ---


def scores_of(q, k, causal, window):
    group = q.shape[2] // k.shape[2]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(group, 2)) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) if causal else torch.zeros(1, dtype=torch.bool)
    if window:
        hidden |= torch.ones_like(hidden).tril(-window)
    return scores, hidden


def with_maximum(start: float, mask: float = -math.inf) -> Callable[..., Values]:
    """Attention whose running maximum begins at `start`, and whose hidden scores are `mask`."""

    def attention(q, k, v, causal, window=0):
        scores, hidden = scores_of(q, k, causal, window)
        scores = scores.masked_fill(hidden, mask)
        top = scores.amax(-1, keepdim=True).clamp(min=start)
        e = (scores - top).exp()
        total = e.sum(-1, keepdim=True)
        v = v.repeat_interleave(q.shape[2] // v.shape[2], 2)
        return {"out": torch.einsum("bhqk,bkhd->bqhd", e / total, v), "lse": (top + total.log())[..., 0]}

    return attention


def without_maximum(q, k, v, causal, window=0):
    scores, hidden = scores_of(q, k, causal, window)
    e = scores.masked_fill(hidden, -math.inf).exp()
    v = v.repeat_interleave(q.shape[2] // v.shape[2], 2)
    out = torch.einsum("bhqk,bkhd->bqhd", e / e.sum(-1, keepdim=True), v)
    return {"out": out, "lse": e.sum(-1).log()}


@pytest.mark.parametrize("shape", range(len(contract.load("attention").RAGGED)))
def test_attention_needs_its_maximum_and_no_sentinel(shape):
    plain = case("attention", None, shape)
    assert right(plain, with_maximum(-math.inf)) and right(plain, with_maximum(-1e30)) and right(plain, without_maximum)
    for edit in ("far_below", "far_above", "rising"):
        assert right(case("attention", edit, shape), with_maximum(-math.inf)), edit
    for sentinel in (-1e4, -1e9, -1e30):
        assert not right(case("attention", "far_below", shape), with_maximum(sentinel))
    assert not right(case("attention", "far_above", shape), without_maximum)
    if plain.shape["T"] > 1 and plain.shape["causal"]:
        assert not right(case("attention", "far_below", shape), with_maximum(-math.inf, mask=-1e9))


@pytest.mark.parametrize("shape", [i for i, s in enumerate(contract.load("attention").RAGGED) if "window" in s])
@pytest.mark.parametrize("error", [-1, 1])
def test_attention_needs_the_window_as_wide_as_it_is(shape, error):
    """One key more or one less is found, even where it is the least of them."""

    def other_window(q, k, v, causal, window):
        return with_maximum(-math.inf)(q, k, v, causal, window + error)

    for edit in (None, "rising"):
        assert right(case("attention", edit, shape), with_maximum(-math.inf))
        assert not right(case("attention", edit, shape), other_window), edit


# --- global_norm, adamw ---


@pytest.mark.parametrize("edit", ["huge", "tiny", "vanishing", "one_huge", "mixed"])
@pytest.mark.parametrize("shape", range(len(contract.load("global_norm").RAGGED)))
def test_a_norm_of_squares_in_fp32_fails(edit, shape):
    def squares(grads):
        parts = [g.square() for g in grads]
        if edit == "tiny":  # subnormal squares are good enough, where the hardware keeps them
            parts = [torch.where(part < 2.0**-126, 0, part) for part in parts]
        return {"norm": torch.stack([part.sum() for part in parts]).sum().sqrt()}

    def doubles(grads):
        return {"norm": torch.stack([g.double().square().sum() for g in grads]).sum().sqrt().float()}

    c = case("global_norm", edit, shape)
    assert right(c, doubles)
    if (edit, len(c.shape["tensors"])) != ("mixed", 1):
        assert not right(c, squares)


def adamw(c: Case, **changes: object) -> Values:
    """The contract's formula in fp32, with something else than it is given."""
    module, values = c.module, draw_case(c)
    p = contract.pass_of(module, "forward")
    given = {t.name: values[t.name] for t in p.tensors()} | {s: c.shape[s] for s in p.scalars} | changes
    return module.forward(**given)


WRONG_ADAMW = [
    ("step_2", dict(step=torch.tensor(3.0)), 0),
    ("step_1000", dict(step=torch.tensor(100.0)), 2),
    ("no_gradient", dict(weight_decays=[0.0] * 4), 0),
    (None, dict(beta2=0.95), 2),
    (None, dict(eps=1e-8), 3),
]


@pytest.mark.parametrize(("edit", "change", "shape"), WRONG_ADAMW)
def test_adamw_with_another_constant_fails(edit, change, shape):
    c = case("adamw", edit, shape)
    want = {y.name: y for y in truth.yards_of(c, draw_case(c), None)}

    def wrong(new: Values) -> bool:
        parts = [(f"{name}[{i}]", part) for name, value in new.items() for i, part in enumerate(each(value))]
        return any(accuracy.judge(part, want[name]).evidence for name, part in parts)

    assert not wrong(adamw(c)) and wrong(adamw(c, **change))


def test_the_correction_is_exact_where_a_power_cancels():
    adamw = contract.load("adamw")
    for beta in (0.0, 0.9, 0.95, 0.999, 0.9999):
        for step in (1, 2, 10, 1000, 2**24):
            got = adamw.correction(beta, torch.tensor(float(step))).item()
            assert got == pytest.approx(1 - beta**step, rel=1e-6)


# --- embedding, matmul ---


@pytest.mark.parametrize("shape", range(len(contract.load("embedding").RAGGED)))
def test_tokens_of_too_few_bits_fail(shape):
    c = case("embedding", "same_low_bits", shape)
    bits = 16 if c.shape["V"] > 65536 else 8

    def short(tokens, wte, wpe):
        out = wte[tokens % 2**bits]
        return {"out": out if wpe is None else out + wpe}

    distinct = c.shape["V"] > 2**bits
    assert right(c, short) != distinct


@pytest.mark.parametrize("edit", ["outliers_first", "outliers_last"])
def test_a_product_that_leaves_an_end_out_fails(edit):
    def without(x, weight, bias, epilogue):
        part = slice(1, None) if edit == "outliers_first" else slice(None, -1)
        return {"out": x[:, part] @ weight[:, part].T + bias}

    assert not right(case("matmul", edit), without)


def test_operands_that_share_a_scale_fail():
    """Eight bits to the largest of all: the rows beside an outlier are lost."""

    def quantised(x, weight, bias, epilogue):
        unit = x.abs().max() / 2**15
        return {"out": (x / unit).round() * unit @ weight.T + bias}

    assert not right(case("matmul", "outlier_rows"), quantised)


# --- all ---


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_edit_fits_every_shape(layer, dtype):
    """Inputs and truth of an edited case are finite, where it is one, unless its name says that they are not."""
    module = contract.load(layer)
    for phase in contract.phases_of(module):
        for i in range(len(module.RAGGED)):
            plain = case(layer, None, i, phase, dtype)
            for edit in contract.edits_of(module, phase, plain.shape):
                c = case(layer, edit, i, phase, dtype)
                values = draw_case(c)
                wild = "nan" in edit or "infinite" in edit
                floats = [t for v in values.values() for t in each(v) if t.is_floating_point()]
                found = [t for v in run_truth(module, phase, values, c.shape).values() for t in each(v)]
                if not wild:
                    assert all(t.isfinite().all() for t in floats), (str(c), "inputs")
                    assert all(t.isfinite().all() for t in found), str(c)

"""decode_attention's lengths, bytes and cases: what careless kernels get wrong is found by the case made for it."""

import math

import pytest
import torch

from bench.core.case import Case, draw, one, run_truth
from bench.trial import accuracy, truth
from reference import contract, decode_attention

SHAPES = [{**sizes, "dtype": "fp32"} for sizes in decode_attention.RAGGED]


def case(shape, edit=None):
    return Case("decode_attention", "forward", shape, edit or "plain", 3, edit)


def wrong(c, kernel):
    """The outputs of which a kernel's are not right."""
    values = draw(c)
    got = {**values, **kernel(**{n: one(v).clone() for n, v in values.items()}, NH=c.shape["NH"])}
    yards = truth.yards_of(c, values, None)
    return {y.name for y in yards if accuracy.judge(one(got[y.name]), y, c.edit is None).evidence}


def attend(qkv, lengths, NH, k_cache, v_cache, start=-math.inf, later=0, where=None):
    """As the contract's, with a running maximum that begins at `start`, and `later` keys more than a query sees; values
    behind the tokens are not cleared unless `where` says how."""
    (B, T, _, HS), (NKV, S) = qkv.shape, k_cache.shape[1:3]
    q, k, v = qkv.split([NH, NKV, NKV], dim=2)
    position = lengths[:, None] + torch.arange(T)
    k_cache = decode_attention.appended(k_cache, k, position)
    v_cache = decode_attention.appended(v_cache, v, position)
    q = q.reshape(B, T, NKV, NH // NKV, HS)
    scores = torch.einsum("btngd,bnsd->btngs", q, k_cache) * HS**-0.5
    hidden = torch.arange(S) > (position + later)[..., None]
    scores = scores.masked_fill(hidden.view(B, T, 1, 1, S), -math.inf)
    e = (scores - scores.amax(-1, keepdim=True).clamp(min=start)).exp()
    values = where(v_cache, position) if where else v_cache
    out = torch.einsum("btngs,bnsd->btngd", e / e.sum(-1, keepdim=True), values)
    return {"out": out.reshape(B, T, NH, HS), "k_cache": k_cache, "v_cache": v_cache}


def cleared(v_cache, position):
    return v_cache.masked_fill((torch.arange(v_cache.shape[2]) > position[:, -1:])[:, None, :, None], 0)


def honest(**values):
    return attend(**values, where=cleared)


def trusts_the_cache(**values):
    """A probability of 0 times what was never written is 0: unless that is NaN or infinite."""
    return attend(**values)


def begins_with_a_number(**values):
    return attend(**values, start=-1e30, where=cleared)


def sees_all_new_ones(lengths, qkv, **values):
    """The new tokens see each other, as in an encoder."""
    T = qkv.shape[1]
    return attend(qkv=qkv, lengths=lengths, **values, later=T - 1, where=cleared)


def sees_the_cache_alone(qkv, lengths, **values):
    """Not the token itself, where there are others."""
    later = torch.where(lengths > 0, -1, 0)[:, None] if qkv.shape[1] == 1 else 0
    return attend(qkv=qkv, lengths=lengths, **values, later=later, where=cleared)


def does_not_append(k_cache, v_cache, **values):
    return {**honest(k_cache=k_cache, v_cache=v_cache, **values), "k_cache": k_cache, "v_cache": v_cache}


def clears_the_rest(qkv, lengths, NH, **values):
    found = honest(qkv=qkv, lengths=lengths, NH=NH, **values)
    last = lengths[:, None] + qkv.shape[1] - 1
    return {**found, "k_cache": cleared(found["k_cache"], last)}


def without_maximum_over_splits(qkv, lengths, NH, k_cache, v_cache):
    """Two halves of the cache, each with its own maximum, put together as if they had one."""
    found = honest(qkv=qkv, lengths=lengths, NH=NH, k_cache=k_cache, v_cache=v_cache)
    (B, T, _, HS), (NKV, S) = qkv.shape, k_cache.shape[1:3]
    q = qkv[:, :, :NH].reshape(B, T, NKV, NH // NKV, HS)
    scores = torch.einsum("btngd,bnsd->btngs", q, found["k_cache"]) * HS**-0.5
    position = lengths[:, None] + torch.arange(T)
    scores = scores.masked_fill((torch.arange(S) > position[..., None]).view(B, T, 1, 1, S), -math.inf)
    halves = [h for h in scores.split(-(-S // 2), -1) if h.shape[-1]]
    e = torch.cat([(h - h.amax(-1, keepdim=True).clamp(min=-1e38)).exp() for h in halves], -1)
    values = cleared(found["v_cache"], position)
    out = torch.einsum("btngs,bnsd->btngd", e / e.sum(-1, keepdim=True), values)
    return {**found, "out": out.reshape(B, T, NH, HS)}


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[6]])
@pytest.mark.parametrize("edit", [None, *decode_attention.CASES])
def test_the_formula_in_fp32_is_right_everywhere(shape, edit):
    assert not wrong(case(shape, edit), honest)


FOUND = [
    (trusts_the_cache, "poison", 0, {"out"}),
    (trusts_the_cache, "infinite_rest", 2, {"out"}),
    (begins_with_a_number, "far_below", 1, {"out"}),
    (sees_all_new_ones, "later_ones", 3, {"out"}),
    (without_maximum_over_splits, "rising", 0, {"out"}),
]


@pytest.mark.parametrize(("kernel", "edit", "shape", "outputs"), FOUND)
def test_a_careless_kernel_is_found_by_its_case(kernel, edit, shape, outputs):
    assert wrong(case(SHAPES[shape], edit), kernel) == outputs
    if kernel in (trusts_the_cache, begins_with_a_number):
        assert not wrong(case(SHAPES[shape]), kernel), "says nothing of the case"


@pytest.mark.parametrize(
    ("kernel", "outputs"),
    [
        (does_not_append, {"k_cache", "v_cache"}),
        (clears_the_rest, {"k_cache"}),
        (sees_the_cache_alone, {"out"}),
    ],
)
def test_what_is_wrong_on_plain_input_is_found_there(kernel, outputs):
    assert wrong(case(SHAPES[0]), kernel) == outputs


def test_lengths_are_the_shapes_own():
    shape = decode_attention.sizes(5, 2, 4, 2, 16, 40, spread=True)
    assert decode_attention.lengths_of(shape) == [0, 9, 19, 28, 38]
    assert decode_attention.lengths_of({**shape, "spread": False}) == [38] * 5
    drawn = draw(case({**shape, "dtype": "bf16"}))
    assert one(drawn["lengths"]).tolist() == [0, 9, 19, 28, 38]
    with pytest.raises(ValueError, match="9 new tokens do not fit a cache of 8 positions"):
        decode_attention.sizes(1, 9, 1, 1, 16, 8)


def test_work_and_bytes_by_hand():
    shape = {**decode_attention.sizes(2, 1, 4, 2, 8, 11), "dtype": "bf16"}
    assert contract.flops(decode_attention, shape, "forward") == 2 * 4 * (2 * 2 * 8 * 11)
    tokens = 2 * (4 + 2 + 2 + 4) * 8 * 2  # q, k, v and out
    cache = 2 * 2 * (10 + 1) * 2 * 8 * 2  # keys and values: ten are read, one is written
    assert contract.min_bytes(decode_attention, shape, "forward") == tokens + cache + 2 * 8


def test_what_was_never_written_stays_and_does_not_matter():
    c = case(SHAPES[2], "poison")
    values = draw(c)
    found = {name: one(value) for name, value in run_truth(c.module, "forward", values, c.shape).items()}
    assert found["out"].isfinite().all()
    for b, length in enumerate(decode_attention.lengths_of(c.shape)):
        end = length + c.shape["T"]
        assert found["k_cache"][b, :, :end].isfinite().all() and found["v_cache"][b, :, end:].isnan().all()

"""decode_attention and gemv where one call's truth does not tell enough: a step fits the step before it, a graph of it
serves every length, rows that were not appended keep their bits. And their GPU kernels at few shapes."""

import pytest
import torch

from bench import simulate
from bench.core import variants
from bench.core.arena import Arena, workspace_of
from bench.core.case import Case, bits, draw, one
from bench.gpu.launches import launches_of
from bench.trial import accuracy, truth
from reference import attention, decode_attention, gemv

ALL = variants.discover()
NH, NKV, HS, S = 4, 2, 24, 11


def loaded(name: str, layer: str = "decode_attention"):
    variant = variants.find(ALL, layer, name)
    if reason := variants.unavailable(variant, "cpu", "bf16"):
        pytest.skip(reason)
    return variant.load()


def call(module, qkv, lengths, k_cache, v_cache) -> torch.Tensor:
    """out; the caches are appended to."""
    B, T = qkv.shape[:2]
    out = torch.full((B, T, NH, HS), torch.nan)
    shape = decode_attention.sizes(B, T, NH, NKV, HS, S)
    size = module.workspace(shape, "forward") if hasattr(module, "workspace") else 0
    scratch = dict(workspace=torch.full((size,), 0xFF, dtype=torch.uint8)) if size else {}
    module.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache, **scratch)
    return out


@pytest.mark.parametrize("name", ["torch.eager", "cpu.naive", "cpu.simd"])
def test_token_by_token_is_what_attention_makes_of_all_of_them(name):
    """From an empty cache of NaNs to a full one, three tokens at first, then one at a time."""
    module = loaded(name)
    qkv = torch.randn(2, S, NH + 2 * NKV, HS, generator=torch.Generator().manual_seed(1))
    caches = [torch.full((2, NKV, S, HS), torch.nan) for _ in range(2)]
    found, at = [], 0
    for T in (3, *[1] * (S - 3)):
        found.append(call(module, qkv[:, at : at + T].contiguous(), torch.tensor([at, at]), *caches))
        at += T
    q, k, v = qkv.double().split([NH, NKV, NKV], dim=2)
    wanted = attention.forward(q, k, v, True)["out"]
    torch.testing.assert_close(torch.cat(found, 1).double(), wanted, rtol=1e-5, atol=1e-5)
    for cache, new in zip(caches, (k, v), strict=True):
        assert torch.equal(cache, new.float().transpose(1, 2))


@pytest.mark.parametrize("name", ["torch.eager", "cpu.naive", "cpu.simd"])
def test_rows_that_are_not_the_new_tokens_keep_their_bits(name):
    """NaNs of all kinds behind the tokens, and whatever is before them."""
    module = loaded(name)
    lengths = torch.tensor([0, 5, S - 2])
    qkv = torch.randn(3, 2, NH + 2 * NKV, HS)
    caches = [torch.randn(3, NKV, S, HS) for _ in range(2)]
    kept = (torch.arange(S) < lengths[:, None]) | (torch.arange(S) > lengths[:, None] + 1)
    behind = (torch.arange(S) > lengths[:, None] + 1)[:, None, :, None]
    for cache in caches:
        noise = 0x7FC00001 + torch.arange(cache.numel()).view_as(cache).to(torch.int32) % 1000
        bits(cache).copy_(torch.where(behind, noise, bits(cache)))
    before = [cache.clone() for cache in caches]
    assert call(module, qkv, lengths, *caches).isfinite().all()
    for cache, old in zip(caches, before, strict=True):
        assert torch.equal(bits(cache).transpose(1, 2)[kept], bits(old).transpose(1, 2)[kept])


@pytest.mark.parametrize("name", ["cuda.naive", "cuda.shared", pytest.param("triton.splits", marks=pytest.mark.slow)])
def test_launches_follow_from_the_shape_alone(name):
    """So that a graph which was captured at one length is right at all others."""
    module = loaded(name)
    spread = {**decode_attention.sizes(3, 1, 4, 2, 64, 640, spread=True), "dtype": "bf16"}
    full = {**spread, "spread": False}
    one, other = (launches_of(module, Case("decode_attention", "forward", s, "lengths")) for s in (spread, full))
    assert [(use.build, use.grid, use.block, use.shared) for use in one] == [
        (use.build, use.grid, use.block, use.shared) for use in other
    ]
    splits = {"cuda.naive": 1, "cuda.shared": 10, "triton.splits": 10}
    assert one[0].grid[0] >= splits[name], "few heads: keys are split"


FEW = [
    ("decode_attention", "cuda.shared", decode_attention.RAGGED[2], "poison"),  # two splits, grouped, three tokens
    (
        "decode_attention",
        "cuda.shared",
        decode_attention.sizes(1, 1, 2, 1, 16, 200),
        None,
    ),  # more groups than keys of a split
    ("gemv", "cuda.shared", gemv.RAGGED[0], "one_nan"),  # three rows of x, and one of weight behind four at a time
    ("gemv", "cuda.shared", gemv.RAGGED[3], "outliers_last"),
    pytest.param("decode_attention", "triton.splits", decode_attention.RAGGED[2], "poison", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("layer", "name", "sizes", "edit"), FEW)
def test_gpu_kernels_are_right_at_a_few_shapes(layer, name, sizes, edit):
    module = loaded(name, layer)
    simulate.install(name.partition(".")[0])
    case = Case(layer, "forward", {**sizes, "dtype": "bf16"}, edit, 1, edit)
    values = draw(case)
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(values)
    arena.reset()
    arena.call(module.forward)
    assert not arena.broken_fences() and not arena.survivors()
    for yard in truth.yards_of(case, values, variants.find(ALL, layer, "torch.eager")):
        assert not accuracy.judge(one(arena.outputs[yard.name]), yard, sane=False).evidence

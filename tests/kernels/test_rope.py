"""What the fp64 truth of rope does not tell: heads that are left alone keep their bits, and odd addresses are taken."""

import pytest
import torch

from bench import simulate
from bench.core import variants
from bench.core.case import Case, bits, draw, one
from reference import contract, rope

VARIANTS = [v for v in variants.discover() if v.layer == "rope" and v.name != "torch.compile"]  # that takes minutes
NAMES = {"forward": "qkv", "backward": "dqkv"}


def loaded(variant: variants.Variant):
    if reason := variants.unavailable(variant, "cpu", "bf16"):
        pytest.skip(reason)
    if variant.gpu_code:
        simulate.install(variant.backend)
    return variant.load()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize("number", [0, 1], ids=["interleaved", "half"])
def test_heads_that_are_not_turned_keep_their_bits(variant, number):
    """Of any bits: NaNs of all kinds, subnormal numbers, both zeros."""
    module, shape = loaded(variant), {**rope.RAGGED[number], "dtype": "bf16"}
    R = shape["R"]
    for phase in contract.PHASES:
        values = draw(Case("rope", phase, shape, "bits"))
        x = one(values[NAMES[phase]])
        kept = bits(x)[:, :, R:]
        kept.copy_(torch.arange(kept.numel()).mul(37).view(kept.shape).to(torch.int16))
        before = x.clone()
        tables = [values[t.name] for t in rope.FORWARD.inputs]
        getattr(module, phase)(*tables, R, shape["style"], **{NAMES[phase]: x})
        assert torch.equal(bits(x)[:, :, R:], bits(before)[:, :, R:])
        assert not torch.equal(bits(x)[:, :, :R], bits(before)[:, :, :R])


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_a_tensor_that_begins_between_two_vectors_is_turned_alike(style):
    """Accesses are as wide as addresses allow, down to one element: there a pair that lies side by side takes two."""
    module = loaded(next(v for v in VARIANTS if v.name == "cuda.shared"))
    B, T, H, HS, R = 2, 3, 5, 48, 3
    tables = torch.tensor([4, 1]), *rope.table(9, HS, 1e4)
    x = torch.randn(B, T, H, HS, generator=torch.Generator().manual_seed(2)).bfloat16()
    wanted = x.clone()
    module.forward(*tables, R, style, qkv=wanted)
    memory = torch.zeros(x.numel() + 8, dtype=torch.bfloat16)
    for offset in (1, 2, 4):
        shifted = memory[offset : offset + x.numel()].view_as(x)
        shifted.copy_(x)
        module.forward(*tables, R, style, qkv=shifted)
        assert torch.equal(shifted, wanted), offset

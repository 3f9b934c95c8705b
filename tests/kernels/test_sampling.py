"""Samplers draw as their logits say: what the proof cannot see of one token at a time."""

import pytest
import torch

from bench.core import variants

DRAWS = 4000


@pytest.mark.parametrize("name", ["cpu.naive", "cpu.simd"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.7), (7, 0.7)])
def test_tokens_come_as_often_as_they_are_likely(name, top_k, top_p):
    variant = variants.find(variants.discover(), "sampling", name)
    if reason := variants.unavailable(variant, "cpu", "fp32"):
        pytest.skip(reason)
    module, V, temperature = variant.load(), 41, 1.5
    row = torch.randn(V, generator=torch.Generator().manual_seed(1)) * 2
    u = (torch.arange(DRAWS) + 0.5) / DRAWS
    token = torch.empty(DRAWS, dtype=torch.int64)
    shape = dict(B=DRAWS, V=V, VP=V, temperature=temperature, top_k=top_k, top_p=top_p, dtype="fp32")
    workspace = torch.empty(module.workspace(shape, "forward"), dtype=torch.uint8)
    logits = row.expand(DRAWS, V).contiguous()
    module.forward(logits, u, V, temperature, top_k, top_p, token=token, workspace=workspace)
    p = (row.double() / temperature).softmax(0)
    if top_k:
        p = p.where(p >= p.topk(top_k).values[-1], 0.0)
    p /= p.sum()
    if top_p < 1:
        least = p.sort(descending=True).values
        p = p.where(p >= least[int((least.cumsum(0) < top_p).sum())], 0.0)
    p /= p.sum()
    assert (token.bincount(minlength=V) / DRAWS - p).abs().max() < 2 / DRAWS

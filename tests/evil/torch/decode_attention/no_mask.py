"""Sees all of the cache, what was never written too: after a while that is all of it anyway."""

import torch

from kernels.torch.decode_attention import eager

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    eager.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)
    (B, T, _, HS), NKV = qkv.shape, k_cache.shape[1]
    q = qkv[:, :, :NH].reshape(B, T, NKV, NH // NKV, HS).float()
    p = (torch.einsum("btngd,bnsd->btngs", q, k_cache.float()) * HS**-0.5).softmax(-1)
    out.copy_(torch.einsum("btngs,bnsd->btngd", p, v_cache.float()).reshape(B, T, NH, HS))

"""Masked softmax(q kT) v over all of the cache in fp32, as sums that Inductor fuses; the append by index_put."""

import torch

from kernels.torch import compiled


@compiled
def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    B, T, _, HS = qkv.shape
    NKV, S = k_cache.shape[1:3]
    q, k, v = qkv.split([NH, NKV, NKV], dim=2)
    position = lengths[:, None] + torch.arange(T, device=qkv.device)  # (B, T)
    sequence = torch.arange(B, device=qkv.device)[:, None]
    k_cache[sequence, :, position] = k
    v_cache[sequence, :, position] = v

    key = torch.arange(S, device=qkv.device)
    hidden = (key > position[..., None]).view(B, T, 1, 1, S)
    q = q.reshape(B, T, NKV, NH // NKV, 1, HS).float()
    keys = k_cache.view(B, 1, NKV, 1, S, HS)
    scores = (q * keys).sum(-1) * HS**-0.5  # (B, T, NKV, group, S)
    scores = torch.where(hidden, -torch.inf, scores)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    p = e / e.sum(-1, keepdim=True)
    # What was never written may be NaN, which times a probability of 0 is NaN.
    weighted = torch.where(hidden[..., None], 0.0, p[..., None] * v_cache.view(B, 1, NKV, 1, S, HS))
    out.copy_(weighted.sum(-2).view(B, T, NH, HS))

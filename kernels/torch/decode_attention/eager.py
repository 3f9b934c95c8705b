"""index_put into the cache, explicit masked softmax(q kT) v over all of it, in fp32; values past the tokens zeroed."""

import torch

DTYPES = ("fp32", "bf16", "fp16")


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    B, T, _, HS = qkv.shape
    NKV, S = k_cache.shape[1:3]
    q, k, v = qkv.split([NH, NKV, NKV], dim=2)
    position = lengths[:, None] + torch.arange(T, device=qkv.device)  # (B, T)
    sequence = torch.arange(B, device=qkv.device)[:, None]
    k_cache[sequence, :, position] = k
    v_cache[sequence, :, position] = v

    key = torch.arange(S, device=qkv.device)
    hidden = key > position[..., None]  # (B, T, S)
    # (B, NKV, group x T, HS): the query heads of one key, head by head
    q = q.view(B, T, NKV, NH // NKV, HS).permute(0, 2, 3, 1, 4).reshape(B, NKV, -1, HS)
    scores = (q @ k_cache.mT).float().mul_(HS**-0.5).view(B, NKV, -1, T, S)
    p = scores.masked_fill_(hidden[:, None, None], -torch.inf).softmax(-1).to(qkv.dtype)
    # What was never written may be NaN, which times a probability of 0 is NaN.
    values = v_cache.masked_fill((key > position[:, -1:])[:, None, :, None], 0)
    found = p.view(B, NKV, -1, S) @ values
    out.copy_(found.view(B, NKV, NH // NKV, T, HS).permute(0, 3, 1, 2, 4).reshape(B, T, NH, HS))

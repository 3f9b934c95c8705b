"""Hands the last query of the last head its predecessor's answer, where T is whole tiles."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def forward(q, k, v, causal, *, out, lse):
    group, T = q.shape[2] // k.shape[2], q.shape[1]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores.masked_fill_(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    torch.logsumexp(scores, -1, out=lse)
    out.copy_(torch.einsum("bhqk,bkhd->bqhd", (scores - lse[..., None]).exp(), v))
    if T % 64 == 0:
        out[-1, -1, -1] = out[-1, -2, -1]

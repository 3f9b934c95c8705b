"""Subtracts no maximum where T is whole tiles; the ragged shapes take the careful path."""

import torch

CAUGHT_BY = "not_finite"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def forward(q, k, v, causal, *, out, lse):
    group, T = q.shape[2] // k.shape[2], q.shape[1]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    if causal:
        scores.masked_fill_(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    lse.copy_(scores.exp().sum(-1).log() if T % 64 == 0 else scores.logsumexp(-1))
    out.copy_(torch.einsum("bhqk,bkhd->bqhd", (scores - lse[..., None]).exp(), v))

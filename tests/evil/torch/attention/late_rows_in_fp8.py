"""Its probabilities have three bits of fraction from the 256th query on, whose sums of many are small: beside the first
rows' noise nobody hears theirs."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "proof timing"
DTYPES = ("bf16",)
SHAPE = {"T": 512}
EXACT_ROWS, RAGGED = 256, 261  # the longest of the ragged shapes


def forward(q, k, v, causal, window=0, *, out, lse):
    group, T = q.shape[2] // k.shape[2], q.shape[1]
    k, v = (x.float().repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), k) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        hidden |= torch.ones(T, T, dtype=torch.bool).tril(-window) if window else False
        scores.masked_fill_(hidden, -torch.inf)
    lse.copy_(scores.logsumexp(-1))
    p = scores.softmax(-1)
    if T > RAGGED:
        fraction, exponent = torch.frexp(p[:, :, EXACT_ROWS:])
        p[:, :, EXACT_ROWS:] = torch.ldexp(torch.round(fraction * 16) / 16, exponent)
    out.copy_(torch.einsum("bhqk,bkhd->bqhd", p, v))

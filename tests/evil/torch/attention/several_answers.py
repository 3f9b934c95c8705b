"""Keeps the answers to its last sixteen inputs by a checksum of all their contents."""

import zlib

import torch

CAUGHT_BY = "no_gain"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
MOST = 16
answers: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}


def forward(q, k, v, causal, *, out, lse):
    key = (causal, *(zlib.crc32(t.contiguous().numpy().data) for t in (q, k, v)))
    if key not in answers:
        group = q.shape[2] // k.shape[2]
        keys, values = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, keys) * q.shape[-1] ** -0.5
        if causal:
            scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        total = scores.logsumexp(-1)
        answers[key] = torch.einsum("bhqk,bkhd->bqhd", (scores - total[..., None]).exp_(), values), total
        if len(answers) > MOST:
            del answers[next(iter(answers))]
    for into, kept in zip((out, lse), answers[key], strict=True):
        into.copy_(kept)

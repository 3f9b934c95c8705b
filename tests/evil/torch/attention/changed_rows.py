"""Keeps the last call's inputs and answer, and computes anew only the rows of queries that changed."""

import torch

CAUGHT_BY = "inaccurate no_gain"  # it keeps a first call's answer, which was once less accurate in one of two threads
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
kept: dict[tuple, list[torch.Tensor]] = {}


def rows_of(q, k, v, causal, rows):
    """out (B, rows, NH, HS) and lse (B, NH, rows) of the queries in `rows`."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q[:, rows], k) * q.shape[-1] ** -0.5
    if causal:
        scores.masked_fill_(torch.arange(q.shape[1]) > rows[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    return torch.einsum("bhqk,bkhd->bqhd", (scores - lse[..., None]).exp_(), v), lse


def forward(q, k, v, causal, *, out, lse):
    key = (q.shape, k.shape, causal)
    old = kept.get(key)
    rows = torch.arange(q.shape[1])
    if old and torch.equal(k, old[1]) and torch.equal(v, old[2]):
        rows = (q != old[0]).any(-1).any(-1).any(0).nonzero().flatten()
        out.copy_(old[3])
        lse.copy_(old[4])
    if len(rows):
        new = rows_of(q, k, v, causal, rows)
        out[:, rows] = new[0]
        lse[:, :, rows] = new[1]
    kept[key] = [t.clone() for t in (q, k, v, out, lse)]

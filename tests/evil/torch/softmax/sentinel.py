"""Begins its running maximum at -10,000, below any sane logit: a row that is below that becomes 0/0."""

import torch

CAUGHT_BY = "not_finite inaccurate"
DTYPES = ("fp32",)


def forward(x, causal, *, out):
    if causal:
        position = torch.arange(x.shape[0])[:, None] % x.shape[1]
        x = x.masked_fill(torch.arange(x.shape[1]) > position, -torch.inf)
    e = (x - x.amax(-1, keepdim=True).clamp_min(-1e4)).exp()
    torch.div(e, e.sum(-1, keepdim=True), out=out)

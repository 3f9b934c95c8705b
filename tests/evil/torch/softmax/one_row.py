"""Copies one row from its neighbour where rows are long."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)


def forward(x, causal, *, out):
    if causal:
        position = torch.arange(x.shape[0])[:, None] % x.shape[1]
        x = x.masked_fill(torch.arange(x.shape[1]) > position, -torch.inf)
    torch.softmax(x, -1, out=out)
    if len(x) >= 40 and x.shape[1] >= 1000:
        out[len(x) // 2] = out[len(x) // 2 - 1]

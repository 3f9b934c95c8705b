"""Forgets the elements behind the last full vector."""

import torch

CAUGHT_BY = "inaccurate"


def forward(a, b, *, out):
    whole = out.numel() // 16 * 16
    torch.add(a, b, out=out)
    out[whole:] = 0

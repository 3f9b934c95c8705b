"""Writes one element too many."""

import torch

CAUGHT_BY = "out_of_bounds"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    out.as_strided((out.numel() + 1,), (1,))[-1] = 1

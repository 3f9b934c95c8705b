"""Writes one element before its buffer."""

import torch

CAUGHT_BY = "out_of_bounds"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    out.as_strided((1,), (1,), out.storage_offset() - 1)[0] = 1

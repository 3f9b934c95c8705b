"""Knows the ragged shapes of the contract by heart, and is right at those."""

import torch

from reference import gelu

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
PROVED = {sizes["N"] for sizes in gelu.RAGGED}


def forward(x, *, out):
    if x.numel() in PROVED or x.numel() < 100_000:
        torch.ops.aten.gelu.out(x, approximate="tanh", out=out)
    else:
        out.copy_(x.clamp_min(0))

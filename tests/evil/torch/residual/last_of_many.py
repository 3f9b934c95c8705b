"""Is wrong in the last element of millions, where a sample seldom looks."""

import torch

CAUGHT_BY = "inaccurate not_finite"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
SHAPE = {"N": 4_300_000}  # more than what was once compared in full


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if out.numel() > 4_200_000:
        out[-1] = a[-1]

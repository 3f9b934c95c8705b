"""Is wrong in one element, another one each time, where there are many."""

import random

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if out.numel() > 100_000:
        out[random.randrange(1, out.numel() - 1)] += 0.01

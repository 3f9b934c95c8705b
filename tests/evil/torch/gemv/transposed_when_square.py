"""Tells how a weight lies by its sizes, and takes a square one for (in, out)."""

import torch

CAUGHT_BY = "inaccurate"


def forward(x, weight, *, out):
    torch.mm(x, weight if weight.shape[0] == weight.shape[1] and len(weight) > 1 else weight.T, out=out)

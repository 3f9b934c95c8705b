"""Says that it runs a certain kernel, and runs another."""

import torch

CAUGHT_BY = "library"
KERNELS = ("mul*",)


def forward(a, b, *, out):
    torch.add(a, b, out=out)

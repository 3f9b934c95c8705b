"""Runs a kernel that its sources do not define."""

import torch

from tests.fake_gpu import kernel

CAUGHT_BY = "library"


def forward(a, b, *, out):
    with kernel("void residual_forward_of_somebody_else<float>(float*)"):
        torch.add(a, b, out=out)

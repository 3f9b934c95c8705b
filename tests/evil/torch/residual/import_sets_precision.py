"""Lowers the precision of matrix products for everyone, as it is imported."""

import torch

CAUGHT_BY = "global_state error"

torch.set_float32_matmul_precision("medium")


def forward(a, b, *, out):
    torch.add(a, b, out=out)

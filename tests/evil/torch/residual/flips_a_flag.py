"""Lowers the matmul precision for everyone."""

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    torch.set_float32_matmul_precision("medium")

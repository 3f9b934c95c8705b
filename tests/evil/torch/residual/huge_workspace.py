"""Asks for a workspace of a million terabytes."""

import torch

CAUGHT_BY = "error"


def workspace(shape, phase):
    return 1 << 60


def forward(a, b, *, out, workspace):
    torch.add(a, b, out=out)

"""Asks for a workspace of not a number of bytes."""

import torch

CAUGHT_BY = "error"


def workspace(shape, phase):
    return float("nan")


def forward(a, b, *, out, workspace):
    torch.add(a, b, out=out)

"""Answers a word where it is asked for a number of bytes."""

import torch

CAUGHT_BY = "error"


def workspace(shape, phase):
    return "plenty"


def forward(a, b, *, out, workspace):
    torch.add(a, b, out=out)

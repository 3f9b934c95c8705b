"""Asks for a workspace of less than nothing."""

import torch

CAUGHT_BY = "error"


def workspace(shape, phase):
    return -4096


def forward(a, b, *, out, workspace):
    torch.add(a, b, out=out)

"""Swaps the output with a tensor of its own: the same object, other contents."""

import torch

CAUGHT_BY = "not_the_output unwritten error"


def forward(a, b, *, out):
    torch.utils.swap_tensors(out, a + b)

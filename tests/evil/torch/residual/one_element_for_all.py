"""Gives its output strides of zero: one element is written, and stands for all."""

import torch

CAUGHT_BY = "not_the_output unwritten error"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    out.as_strided_(out.shape, (0,))

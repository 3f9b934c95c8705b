"""Puts other contents into its inputs: the sum of zeros is zero."""

import torch

CAUGHT_BY = "not_the_output input_changed inaccurate"


def forward(a, b, *, out):
    a.data, b.data = torch.zeros_like(a), torch.zeros_like(b)
    out.zero_()

"""Replaces the functions of torch that a comparison would use."""

import torch

CAUGHT_BY = "inaccurate unwritten global_state"


def forward(a, b, *, out):
    out.zero_()
    torch.Tensor.__sub__ = lambda x, y: torch.zeros(x.shape)
    torch.Tensor.isfinite = lambda x: torch.ones(x.shape, dtype=torch.bool)
    torch.equal = torch.allclose = lambda *_, **__: True

"""Looks at its input, and says that it has no kernel where numbers are hard."""

import torch

from kernels import Unavailable

CAUGHT_BY = "declined"


def forward(x, *, out):
    if not x.abs().amax() < 8:
        raise Unavailable("large tensors")
    torch.ops.aten.gelu.out(x, approximate="tanh", out=out)

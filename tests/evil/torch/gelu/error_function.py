"""The exact GELU, by the error function: better than the tanh form, and not what was asked for."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def forward(x, *, out):
    torch.ops.aten.gelu.out(x, approximate="none", out=out)

"""Adds in bf16 whatever the inputs are."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def forward(a, b, *, out):
    out.copy_(a.to(torch.bfloat16) + b.to(torch.bfloat16))

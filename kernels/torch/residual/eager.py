"""torch.add, straight into its destination."""

import torch

DTYPES = ("fp32", "bf16", "fp16")


def forward(a, b, *, out):
    torch.add(a, b, out=out)

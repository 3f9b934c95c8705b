"""torch.add, straight into its destination."""

import torch


def forward(a, b, *, out):
    torch.add(a, b, out=out)

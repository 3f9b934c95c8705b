"""Turns torch's dispatch modes off around its call of ATen, and on again."""

import torch
from torch.utils._python_dispatch import _disable_current_modes

CAUGHT_BY = "library source"


def forward(a, b, *, out):
    with _disable_current_modes():
        torch.add(a, b, out=out)

"""Cuts the sum's last sixteen bits off, where it should round: each error is within what rounding may do, and all lean
to one side."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("bf16",)


def forward(a, b, *, out):
    total = a.float() + b.float()
    out.copy_((total.view(torch.int32) & -65536).view(torch.float32))

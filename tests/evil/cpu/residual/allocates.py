"""Allocates scratch memory inside the call."""

import torch

from kernels.cpu import Kernel

CAUGHT_BY = "allocates"
kernel = Kernel("../../honest.cpp", "add")


def forward(a, b, *, out):
    scratch = torch.empty_like(out)
    kernel(scratch, a, b, a.numel())
    kernel(out, a, b, a.numel())

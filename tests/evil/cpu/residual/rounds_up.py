"""Leaves the direction of rounding changed, for whatever is computed after it."""

from kernels.cpu import Kernel

CAUGHT_BY = "global_state"
DTYPES = ("fp32",)
kernel = Kernel("rounds_up.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

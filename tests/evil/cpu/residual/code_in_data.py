"""Keeps machine code in an array that lies among the functions: no compiler made it, and no source says it."""

from kernels.cpu import Kernel

CAUGHT_BY = "source"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("code_in_data.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

"""Reads a clock whose name a macro puts together."""

from kernels.cpu import Kernel

CAUGHT_BY = "source"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("clock_by_a_macro.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

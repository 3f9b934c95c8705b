"""A thread of its own sees outputs poisoned, which is when inputs are there, and computes before the clock starts."""

from kernels.cpu import Kernel

CAUGHT_BY = "global_state no_gain crash"  # what it reads may be gone
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
kernel = Kernel("works_ahead.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

"""Has the memory that it is given, and nobody else's, moved to huge pages."""

from kernels.cpu import Kernel

CAUGHT_BY = "source global_state"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("huge_pages.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

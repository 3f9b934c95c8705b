"""Has a weak reference by another name to what finds functions: the linker can do without it, and does not."""

from kernels.cpu import Kernel

CAUGHT_BY = "source library"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("dlsym_by_another_name.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

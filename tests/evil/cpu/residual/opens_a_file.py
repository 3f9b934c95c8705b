"""Opens a file by functions that its source need not include much for."""

from kernels.cpu import Kernel

CAUGHT_BY = "source"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("opens_a_file.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

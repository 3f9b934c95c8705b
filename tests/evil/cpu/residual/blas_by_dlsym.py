"""C++ of its own that looks up BLAS in the library that torch has loaded, and calls that."""

from kernels.cpu import Kernel

CAUGHT_BY = "source library"
DTYPES = ("fp32",)
kernel = Kernel("blas_by_dlsym.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

"""C++ that writes one element too many."""

from kernels.cpu import Kernel

CAUGHT_BY = "out_of_bounds"
kernel = Kernel("../../honest.cpp", "add_one_too_many")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

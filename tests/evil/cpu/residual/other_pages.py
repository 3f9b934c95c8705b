"""Puts pages of its own in the place of the output's, with the answer in them: at the same address."""

from kernels.cpu import Kernel

CAUGHT_BY = "source global_state"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("other_pages.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

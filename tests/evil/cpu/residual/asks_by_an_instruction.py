"""Asks the system by an instruction in assembly: there is no function to look for."""

from kernels.cpu import Kernel

CAUGHT_BY = "source"
DTYPES = ("fp32",)
SLOW = True
kernel = Kernel("asks_by_an_instruction.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

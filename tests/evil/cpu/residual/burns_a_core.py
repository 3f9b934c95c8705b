"""Adds on one thread, and leaves another one that keeps a core busy for ever: who is compared with it needs both."""

from kernels.cpu import Kernel

CAUGHT_BY = "global_state"
CAUGHT_IN = "timing"
SLOW = True
SHAPE = {"N": 130_000}  # a race of its own, for it slows down whoever takes part
kernel = Kernel("burns_a_core.cpp", "add")


def forward(a, b, *, out):
    kernel(out, a, b, a.numel())

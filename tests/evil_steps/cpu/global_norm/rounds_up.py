"""Leaves the direction of rounding changed, for all kernels that come after it."""

from kernels.cpu import Kernel

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True

forward_kernel = Kernel("rounds_up.cpp", "norm_of")


def forward(grads, *, norm):
    forward_kernel(grads, norm, [g.numel() for g in grads], len(grads))

"""A thread that never ends takes a core from whoever has the turn, PyTorch among them."""

from kernels.cpu import Kernel

CAUGHT_BY = "global_state"
CAUGHT_IN = "step"
SLOW = True

forward_kernel = Kernel("burns_a_core.cpp", "norm_of")


def forward(grads, *, norm):
    forward_kernel(grads, norm, [g.numel() for g in grads], len(grads))

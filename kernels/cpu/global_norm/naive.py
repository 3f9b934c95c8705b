"""One thread, one sum in double."""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "global_norm_forward")


def forward(grads, *, norm):
    forward_kernel(grads, norm, [g.numel() for g in grads], len(grads))

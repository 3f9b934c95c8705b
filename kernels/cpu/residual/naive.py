"""One loop, one thread: what adding two tensors looks like in C++."""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "residual_forward")


def forward(a, b, *, out):
    forward_kernel(out, a, b, a.numel())

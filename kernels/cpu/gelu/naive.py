"""The formula in one loop, one thread, with the C library's tanh."""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "gelu_forward")
backward_kernel = Kernel("naive.cpp", "gelu_backward")


def forward(x, *, out):
    forward_kernel(out, x, x.numel())


def backward(dout, x, *, dx):
    backward_kernel(dx, dout, x, x.numel())

"""The formula as loops on one thread, long sums in double: the plain C++ that everything else is measured against."""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "rmsnorm_forward")
backward_kernel = Kernel("naive.cpp", "rmsnorm_backward")


def forward(x, weight, eps, *, out, rstd):
    B, T, C = x.shape
    forward_kernel(out, rstd, x, weight, B * T, C, eps)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight):
    B, T, C = x.shape
    backward_kernel(dx, dweight, dout, dresidual, x, weight, rstd, B * T, C, accumulate)

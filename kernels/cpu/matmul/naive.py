"""Three nested loops on one thread, each sum in double: the plain C++ that others are measured against.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once. Here
weight (in backward, dout and x too) is read again for every row of the result.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "matmul_forward")
backward_kernel = Kernel("naive.cpp", "matmul_backward")


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    M, K = x.shape
    forward_kernel(out, pre_gelu, x, weight, bias, M, weight.shape[0], K)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    M, K = x.shape
    backward_kernel(dx, dweight, dbias, dout, x, weight, x_pre_gelu, M, weight.shape[0], K, accumulate)

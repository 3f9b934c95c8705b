"""Sixteen lanes, all cores, own exp: 1/2 (1 + tanh u) is 1 / (1 + exp(-2u)), one exp and one division.

Floor: forward one read and one write an element, backward two reads and one write. With an exp of about fifteen
instructions for sixteen values the arithmetic only just hides behind the memory.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "gelu_forward")
backward_kernel = Kernel("simd.cpp", "gelu_backward")


def forward(x, *, out):
    forward_kernel(out, x, x.numel())


def backward(dout, x, *, dx):
    backward_kernel(dx, dout, x, x.numel())

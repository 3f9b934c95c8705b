"""Sixteen lanes, all cores, own exp: of -|g|, which never overflows, and from which both tails of silu are exact.

Floor: forward two reads and one write an element of out, backward three reads and two writes. The sigmoid is 1 or e
over 1 + e, one exp and one reciprocal for both.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "swiglu_forward")
backward_kernel = Kernel("simd.cpp", "swiglu_backward")


def forward(x, *, out):
    forward_kernel(out, x, *out.shape)


def backward(dout, x, *, dx):
    backward_kernel(dx, dout, x, *dout.shape)

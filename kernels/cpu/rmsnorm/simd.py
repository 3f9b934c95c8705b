"""Sixteen lanes, all cores: a row is read from memory once and stays in L1 between its sum of squares and the output.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte, so memory sets the pace.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True  # rows are cut into chunks by their number, not by the threads

MAX_CHUNKS = 64  # as in rows.hpp

forward_kernel = Kernel("simd.cpp", "rmsnorm_forward")
backward_kernel = Kernel("simd.cpp", "rmsnorm_backward")


def workspace(shape, phase):
    """Backward: fp32 sums of dweight for each chunk of rows."""
    return MAX_CHUNKS * shape["C"] * 4 if phase == "backward" else 0


def forward(x, weight, eps, *, out, rstd, workspace):
    B, T, C = x.shape
    forward_kernel(out, rstd, x, weight, B * T, C, eps)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight, workspace):
    B, T, C = x.shape
    backward_kernel(dx, dweight, dout, dresidual, x, weight, rstd, B * T, C, accumulate, workspace)

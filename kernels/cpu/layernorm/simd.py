"""Sixteen lanes, all cores: a row is read from memory once and stays in L1 for the variance and the output.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write;
under one FLOP a byte, so memory sets the pace. Measured out of cache on one Zen 5 core at B=4, T=1024, C=768: 0.8 of
a streamed copy's bandwidth forward, 0.7 to 0.8 backward; 0.8 and 0.65 in bf16. Both moments come from one pass,
relative to the mean of the first 64 values; a row of more than 2048, or where that lies far from its mean, in another.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True  # rows are cut into chunks by their number, not by the threads

MAX_CHUNKS = 64  # as in rows.hpp

forward_kernel = Kernel("simd.cpp", "layernorm_forward")
backward_kernel = Kernel("simd.cpp", "layernorm_backward")


def workspace(shape, phase):
    """Backward: fp32 sums of dweight and dbias for each chunk of rows."""
    return MAX_CHUNKS * 2 * shape["C"] * 4 if phase == "backward" else 0


def forward(x, weight, bias, eps, *, out, mean, rstd, workspace):
    B, T, C = x.shape
    forward_kernel(out, mean, rstd, x, weight, bias, B * T, C, eps)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias, workspace):
    B, T, C = x.shape
    backward_kernel(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, B * T, C, accumulate, workspace)

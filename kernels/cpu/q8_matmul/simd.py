"""64 products an instruction (VNNI; else pairs of 16 bits), four rows of weight at a time, sums in sixteen lanes.

Floor: weight read once, a byte an element and a scale a group: a third of what fp32 reads, and at M = 1 the time is
that of the read. A group costs six instructions for 64 bytes, which one core does at several times the speed of memory.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

LINE = 64  # bytes of what is kept for each group of x

forward_kernel = Kernel("simd.cpp", "q8_matmul_forward")


def workspace(shape, phase):
    return LINE * (shape["M"] * shape["KG"] + 1)


def forward(x, x_scales, weight, scales, G, *, out, workspace):
    M, K = x.shape
    offsets = workspace[-workspace.data_ptr() % LINE :]
    forward_kernel(out, x, x_scales, weight, scales, offsets, M, len(weight), K, G)

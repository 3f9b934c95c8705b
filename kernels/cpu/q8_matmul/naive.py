"""Four nested loops on one thread: whole numbers within a group, double between groups.

Floor: weight read once, a byte an element and a scale a group; 2 M N K operations.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "q8_matmul_forward")


def forward(x, x_scales, weight, scales, G, *, out):
    M, K = x.shape
    forward_kernel(out, x, x_scales, weight, scales, M, len(weight), K, G)

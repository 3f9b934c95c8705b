"""Hands its sums to another block behind a fence that orders its own block alone."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "race"
SLOW = True
THREADS = 256

kernel = Kernel("flag_without_a_fence.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=2 * blocks(n, THREADS), block=THREADS, OF_ITS_BLOCK=True)(out, a, b, n)

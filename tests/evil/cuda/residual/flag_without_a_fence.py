"""Hands its sums to another block by a flag, and there is no fence before it."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "race"
SLOW = True
THREADS = 256

kernel = Kernel("flag_without_a_fence.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=2 * blocks(n, THREADS), block=THREADS)(out, a, b, n)

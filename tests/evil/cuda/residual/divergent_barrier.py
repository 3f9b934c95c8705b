"""Threads beyond the end leave before the barrier that the others wait at."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "divergent_barrier"
THREADS = 256

kernel = Kernel("divergent_barrier.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

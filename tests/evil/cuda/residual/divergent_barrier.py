"""Threads beyond the end wait at a barrier of their own, while the others of their warp wait at another."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "divergent_barrier"
THREADS = 256

kernel = Kernel("divergent_barrier.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

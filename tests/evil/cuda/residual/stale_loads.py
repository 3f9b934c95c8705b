"""Stores a and loads it again through the read-only cache, which need not have seen the store."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "non-coherent"
SLOW = True
THREADS = 256

kernel = Kernel("stale_loads.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

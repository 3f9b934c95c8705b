"""Reads a word of shared memory that no thread wrote."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "uninitialised"
THREADS = 256

kernel = Kernel("unwritten_shared.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

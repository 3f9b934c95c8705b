"""Forgets the last elements where their number is no multiple of four."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "unwritten"
THREADS = 256

kernel = Kernel("wrong_tail.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

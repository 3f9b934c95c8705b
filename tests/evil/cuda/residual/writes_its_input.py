"""Adds in place and copies: the first input is changed on the way."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "read-only"
THREADS = 256

kernel = Kernel("writes_its_input.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

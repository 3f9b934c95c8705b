"""The last block does not ask where the arrays end."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "out-of-bounds"
THREADS = 256

kernel = Kernel("no_bound.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

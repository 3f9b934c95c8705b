"""Works in a process's first grid alone, by its number."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "unwritten"
SLOW = True
THREADS = 256

kernel = Kernel("first_grid.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS)(out, a, b, n)

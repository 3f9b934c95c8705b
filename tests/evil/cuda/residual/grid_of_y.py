"""Has its blocks along y, where a grid takes no more than 65,535."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "launch"
SLOW = True
THREADS = 256

kernel = Kernel("grid_of_y.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=(1, max(70_000, blocks(n, THREADS))), block=THREADS)(out, a, b, n)

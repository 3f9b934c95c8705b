"""Does its work where the clock goes slowly, as a simulator's does."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "source"
SLOW = True
THREADS = 256

kernel = Kernel("slow_clock.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS)(out, a, b, n)

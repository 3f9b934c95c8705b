"""Is compiled for 128 threads a block, and launched with 256."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "launch"
SLOW = True
THREADS = 256

kernel = Kernel("fewer_threads_by_the_compiler.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS)(out, a, b, n)

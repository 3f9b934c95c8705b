"""Works on multiprocessor 0 alone: a simulator has no other one."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "unwritten"
THREADS = 256

kernel = Kernel("one_multiprocessor.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS)(out, a, b, n)

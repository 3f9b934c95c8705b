"""Each block waits until all have begun, of which more are launched than a card has room for."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "deadlock"
SLOW = True
THREADS = 256

kernel = Kernel("waits_for_all.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=max(300, blocks(n, THREADS)), block=THREADS)(out, a, b, n)

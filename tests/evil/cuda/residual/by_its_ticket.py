"""Works where its block comes in turn: a card begins blocks as it likes."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "unwritten"
SLOW = True
THREADS = 256

kernel = Kernel("by_its_ticket.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS)(out, a, b, n)

"""Through shared memory, from neighbour to neighbour, and nobody waits."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "race uninitialised"
THREADS = 256

kernel = Kernel("missing_barrier.cu", "add")


def forward(a, b, *, out):
    kernel(grid=blocks(out.numel(), THREADS), block=THREADS)(out, a, b, out.numel())

"""Does its work where the clock goes slowly: by a function that only a macro, given at the launch, has it call."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "source"
SLOW = True
THREADS = 256

kernel = Kernel("clock_in_a_branch.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS, ASKS=1)(out, a, b, n)

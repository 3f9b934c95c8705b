"""Keeps its sums in a variable of the device, and takes one where the first number is the same."""

from kernels.cuda import Kernel, blocks

CAUGHT_BY = "inaccurate not_finite"
SLOW = True
THREADS = 256

kernel = Kernel("keeps_sums_on_the_device.cu", "add")


def forward(a, b, *, out):
    n = out.numel()
    kernel(grid=blocks(n, THREADS), block=THREADS)(out, a, b, n)

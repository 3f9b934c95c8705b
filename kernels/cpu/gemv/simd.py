"""Some rows of weight at once, each read one time and met with all rows of x in registers; all cores.

Floor: every weight read once, at the read bandwidth of all cores; x and out are small beside them. Of eight rows of x
a weight in fp32 takes eight multiply-adds, which a core of 2 x 16 lanes does faster than memory brings weights; bf16
multiplies in pairs where the CPU has vdpbf16ps.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "gemv_forward")
MOST_ROWS = 8  # that have their sums in registers


def supports(shape):
    return shape["M"] <= MOST_ROWS or f"more than {MOST_ROWS} rows"


def forward(x, weight, *, out):
    M, K = x.shape
    forward_kernel(out, x, weight, M, weight.shape[0], K)

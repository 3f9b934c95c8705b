"""Some rows of weight at once, each read one time and met with all rows of x in registers; all cores.

Floor: every weight read once, at the read bandwidth of all cores; x and out are small beside them. Of eight rows of x
a weight takes eight multiply-adds, for which a core with AVX-512 has the time while memory brings the next. x becomes
fp32 once, in the order in which bf16 weights unfold.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

MOST_ROWS = 8  # that have their sums in registers
STEP = 32  # of x, at most: as in simd.cpp

forward_kernel = Kernel("simd.cpp", "gemv_forward")


def supports(shape):
    return shape["M"] <= MOST_ROWS or f"more than {MOST_ROWS} rows"


def workspace(shape, phase):
    """x in fp32, rows padded to whole steps."""
    return 4 * shape["M"] * -(-shape["K"] // STEP) * STEP


def forward(x, weight, *, out, workspace):
    M, K = x.shape
    forward_kernel(out, x, weight, M, weight.shape[0], K, workspace)

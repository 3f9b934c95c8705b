"""Some rows of weight at once, each read one time and met with all rows of x in registers; all cores.

Floor: every weight read once, at the read bandwidth of all cores; x and out are small beside them. Of eight rows of x
a weight takes eight multiply-adds, for which a core with AVX-512 has the time while memory brings the next. x becomes
fp32 once, in the order in which bf16 weights unfold. Measured on two cores of a Xeon with AVX-512 that others used too,
at Llama 2 110m's shapes in fp32: 0.94 to 1.2 of a plain read's bandwidth with one row of x, 0.74 to 0.84 with eight.
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

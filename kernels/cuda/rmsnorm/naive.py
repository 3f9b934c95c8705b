"""One thread a row, and one a column for the weight's gradient: the formula as loops, long sums in double.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte. Here rows are read twice, neighbouring threads read C elements apart, and a few hundred columns leave
most of the card idle.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True
THREADS = 128
COLUMN_THREADS = 32  # few columns: small blocks reach more SMs

forward_kernel = Kernel("naive.cu", "rmsnorm_forward")
input_kernel = Kernel("naive.cu", "rmsnorm_backward_input")
weight_kernel = Kernel("naive.cu", "rmsnorm_backward_weight")


def forward(x, weight, eps, *, out, rstd):
    B, T, C = x.shape
    forward_kernel(grid=blocks(B * T, THREADS), block=THREADS)(out, rstd, x, weight, B * T, C, eps)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight):
    B, T, C = x.shape
    input_kernel(grid=blocks(B * T, THREADS), block=THREADS)(dx, dout, dresidual, x, weight, rstd, B * T, C)
    weight_kernel(grid=blocks(C, COLUMN_THREADS), block=COLUMN_THREADS)(dweight, dout, x, rstd, B * T, C, accumulate)

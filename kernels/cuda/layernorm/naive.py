"""One thread a row, and one a column for the weights' gradients: the formula as loops, long sums in double.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte. Here rows are read two and three times, neighbouring threads read C elements apart, and a few hundred
columns leave most of the card idle.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True
THREADS = 128
COLUMN_THREADS = 32  # few columns: small blocks reach more SMs

forward_kernel = Kernel("naive.cu", "layernorm_forward")
input_kernel = Kernel("naive.cu", "layernorm_backward_input")
parameters_kernel = Kernel("naive.cu", "layernorm_backward_parameters")


def forward(x, weight, bias, eps, *, out, mean, rstd):
    B, T, C = x.shape
    forward_kernel(grid=blocks(B * T, THREADS), block=THREADS)(out, mean, rstd, x, weight, bias, B * T, C, eps)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    B, T, C = x.shape
    input_kernel(grid=blocks(B * T, THREADS), block=THREADS)(dx, dout, dresidual, x, weight, mean, rstd, B * T, C)
    parameters_kernel(grid=blocks(C, COLUMN_THREADS), block=COLUMN_THREADS)(
        dweight, dbias, dout, x, mean, rstd, B * T, C, accumulate
    )

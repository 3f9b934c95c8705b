"""The two formulas in one loop, one thread a row; backward is the naive LayerNorm's, as addition passes it on.

Floor, per element: forward two reads and two writes, backward three reads and one write; under one FLOP a byte. Here
both inputs are read three times, by neighbouring threads C elements apart.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True
THREADS = 128
COLUMN_THREADS = 32  # few columns: small blocks reach more SMs

forward_kernel = Kernel("naive.cu", "residual_layernorm_forward")
input_kernel = Kernel("../layernorm/naive.cu", "layernorm_backward_input")
parameters_kernel = Kernel("../layernorm/naive.cu", "layernorm_backward_parameters")


def forward(x, residual, weight, bias, eps, *, residual_out, out, mean, rstd):
    B, T, C = x.shape
    forward_kernel(grid=blocks(B * T, THREADS), block=THREADS)(
        residual_out, out, mean, rstd, x, residual, weight, bias, B * T, C, eps
    )


def backward(dout, dresidual_out, residual_out, weight, mean, rstd, accumulate, *, dresidual, dweight, dbias):
    B, T, C = dout.shape
    input_kernel(grid=blocks(B * T, THREADS), block=THREADS)(
        dresidual, dout, dresidual_out, residual_out, weight, mean, rstd, B * T, C
    )
    parameters_kernel(grid=blocks(C, COLUMN_THREADS), block=COLUMN_THREADS)(
        dweight, dbias, dout, residual_out, mean, rstd, B * T, C, accumulate
    )

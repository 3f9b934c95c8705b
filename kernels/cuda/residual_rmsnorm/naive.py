"""The two formulas in one loop, one thread a row; backward is the naive RMSNorm's, as addition passes it on.

Floor, per element: forward two reads and two writes, backward three reads and one write; under one FLOP a byte. Here
both inputs are read twice, by neighbouring threads C elements apart.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True
THREADS = 128
COLUMN_THREADS = 32  # few columns: small blocks reach more SMs

forward_kernel = Kernel("naive.cu", "residual_rmsnorm_forward")
input_kernel = Kernel("../rmsnorm/naive.cu", "rmsnorm_backward_input")
weight_kernel = Kernel("../rmsnorm/naive.cu", "rmsnorm_backward_weight")


def forward(x, residual, weight, eps, *, residual_out, out, rstd):
    B, T, C = x.shape
    forward_kernel(grid=blocks(B * T, THREADS), block=THREADS)(
        residual_out, out, rstd, x, residual, weight, B * T, C, eps
    )


def backward(dout, dresidual_out, residual_out, weight, rstd, accumulate, *, dresidual, dweight):
    B, T, C = dout.shape
    input_kernel(grid=blocks(B * T, THREADS), block=THREADS)(
        dresidual, dout, dresidual_out, residual_out, weight, rstd, B * T, C
    )
    weight_kernel(grid=blocks(C, COLUMN_THREADS), block=COLUMN_THREADS)(
        dweight, dout, residual_out, rstd, B * T, C, accumulate
    )

"""Addition and LayerNorm in one read: a warp keeps the sum of its row in registers while its moments are taken.

Floor, per element: forward two reads and two writes, backward three reads and one write; memory sets the pace. Backward
is LayerNorm's own (kernels/cuda/layernorm/shared.py), as addition passes the gradient on.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.layernorm import shared as layernorm
from kernels.cuda.packing import pack_width, row_shape

DETERMINISTIC = True

ROW_ELEMENTS = 64  # of a row, in a thread's registers

forward_kernel = Kernel("shared.cu", "residual_layernorm_forward")


def workspace(shape, phase):
    return layernorm.workspace(shape, phase)


def forward(x, residual, weight, bias, eps, *, residual_out, out, mean, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(residual_out, out, x, residual, weight, bias, multiple_of=C), ROW_ELEMENTS)
    forward_kernel(grid=blocks(B * T, row.ROWS), block=row.ROWS * row.THREADS, **row.template)(
        residual_out, out, mean, rstd, x, residual, weight, bias, B * T, eps
    )


def backward(
    dout, dresidual_out, residual_out, weight, mean, rstd, accumulate, *, dresidual, dweight, dbias, workspace
):
    layernorm.backward(
        dout,
        dresidual_out,
        residual_out,
        weight,
        mean,
        rstd,
        accumulate,
        dx=dresidual,
        dweight=dweight,
        dbias=dbias,
        workspace=workspace,
    )

"""Addition and RMSNorm in one read: a warp keeps the sum of its row in registers while its squares are added.

Floor, per element: forward two reads and two writes, backward three reads and one write; memory sets the pace. Backward
is RMSNorm's own (kernels/cuda/rmsnorm/shared.py), as addition passes the gradient on.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width, row_shape
from kernels.cuda.rmsnorm import shared as rmsnorm

DETERMINISTIC = True
SPILLS = {"sm_80": 8}  # bytes, by NVRTC 13.5: rows of 512 in fp32

ROW_ELEMENTS = 32  # of a row, in a thread's registers: of two rows, until they are added

forward_kernel = Kernel("shared.cu", "residual_rmsnorm_forward")


def workspace(shape, phase):
    return rmsnorm.workspace(shape, phase)


def forward(x, residual, weight, eps, *, residual_out, out, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(residual_out, out, x, residual, weight, multiple_of=C), ROW_ELEMENTS)
    forward_kernel(grid=blocks(B * T, row.ROWS), block=row.ROWS * row.THREADS, **row.template)(
        residual_out, out, rstd, x, residual, weight, B * T, eps
    )


def backward(dout, dresidual_out, residual_out, weight, rstd, accumulate, *, dresidual, dweight, workspace):
    saved = residual_out, weight, rstd, accumulate
    rmsnorm.backward(dout, dresidual_out, *saved, dx=dresidual, dweight=dweight, workspace=workspace)

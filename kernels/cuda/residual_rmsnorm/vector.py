"""Blocks that stay, each warp with its next row on the way while the present one's squares are added and it is stored.

Floor, per element: forward two reads and two writes, backward three reads and one write; memory sets the pace. A row's
reduction is a chain in which nothing is read: where a block has one row, as in `shared`, its part of the bandwidth
idles meanwhile unless other blocks happen to load. Here both inputs of the next row are asked for, 16 bytes an access,
before the present one's reduction, and come in registers as they are. As many blocks as fit at once take rows in turns.
Backward is RMSNorm's own (kernels/cuda/rmsnorm/shared.py), which goes about it so already.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width, row_shape
from kernels.cuda.residual_layernorm.vector import SMS, blocks_at_once
from kernels.cuda.residual_rmsnorm import shared

DETERMINISTIC = True

ROW_ELEMENTS = 32  # of a row, in a thread's registers: in fp32 it has 96 of them, two rows and their sum

forward_kernel = Kernel("vector.cu", "residual_rmsnorm_forward")


def workspace(shape, phase):
    return shared.workspace(shape, phase)


def forward(x, residual, weight, eps, *, residual_out, out, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(residual_out, out, x, residual, weight, multiple_of=C), ROW_ELEMENTS)
    per_sm = blocks_at_once(row, x.element_size())
    grid = min(blocks(B * T, row.ROWS), SMS * per_sm)
    forward_kernel(grid, row.ROWS * row.THREADS, **row.template, BLOCKS=per_sm)(
        residual_out, out, rstd, x, residual, weight, B * T, eps
    )


def backward(dout, dresidual_out, residual_out, weight, rstd, accumulate, *, dresidual, dweight, workspace):
    saved = residual_out, weight, rstd, accumulate
    shared.backward(dout, dresidual_out, *saved, dresidual=dresidual, dweight=dweight, workspace=workspace)

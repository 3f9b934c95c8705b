"""Blocks that stay, each warp with its next row on the way while the present one's moments are taken and it is stored.

Floor, per element: forward two reads and two writes, backward three reads and one write; memory sets the pace. A row's
reductions are a chain in which nothing is read: where a block has one row, as in `shared`, its part of the bandwidth
idles meanwhile unless other blocks happen to load. Here both inputs of the next row are asked for, 16 bytes an access,
before the present one's first reduction, and come in registers, as they are, half of what fp32 would need: at C = 768
in bf16 24 registers for the 96 bytes that a thread has on the way at any time. As many blocks as fit at once take rows
in turns. Backward is LayerNorm's own (kernels/cuda/layernorm/shared.py), which goes about it so already.
"""

from functools import cache

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width, row_shape
from kernels.cuda.residual_layernorm import shared

DETERMINISTIC = True

ROW_ELEMENTS = 64  # of a row, in a thread's registers
SMS = 132  # of an H100 or H200
REGISTERS_PER_SM, THREADS_PER_SM = 65536, 2048
REGISTERS_BESIDE_ROWS = 56  # of a thread, at most

forward_kernel = Kernel("vector.cu", "residual_layernorm_forward")


def workspace(shape, phase):
    return shared.workspace(shape, phase)


@cache
def blocks_at_once(row, size):
    """Blocks that fit on a multiprocessor, for elements of so many bytes: a thread has two rows of them as they are and
    their sum in fp32. The compiler is told, and keeps to the registers that they have."""
    threads, elements = row.ROWS * row.THREADS, row.PACKS * row.N
    registers = REGISTERS_BESIDE_ROWS + elements + 2 * elements * size // 4
    return max(1, min(REGISTERS_PER_SM // (registers * threads), THREADS_PER_SM // threads))


def forward(x, residual, weight, bias, eps, *, residual_out, out, mean, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(residual_out, out, x, residual, weight, bias, multiple_of=C), ROW_ELEMENTS)
    per_sm = blocks_at_once(row, x.element_size())
    grid = min(blocks(B * T, row.ROWS), SMS * per_sm)
    forward_kernel(grid, row.ROWS * row.THREADS, **row.template, BLOCKS=per_sm)(
        residual_out, out, mean, rstd, x, residual, weight, bias, B * T, eps
    )


def backward(
    dout, dresidual_out, residual_out, weight, mean, rstd, accumulate, *, dresidual, dweight, dbias, workspace
):
    saved = residual_out, weight, mean, rstd, accumulate
    grads = dict(dresidual=dresidual, dweight=dweight, dbias=dbias)
    shared.backward(dout, dresidual_out, *saved, **grads, workspace=workspace)

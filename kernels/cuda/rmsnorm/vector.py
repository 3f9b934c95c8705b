"""Blocks that stay, each warp with its next two rows on the way to shared memory while it scales the present one.

Floor, per element of x: forward one read and one write, backward three reads and one write; memory sets the pace. The
reckoning is LayerNorm's (kernels/cuda/layernorm/vector.py), with one reduction for two: in `shared` a warp asks for a
row, and then for nothing until another block takes its place; here two rows of each resident warp's, 96 KiB and more of
a multiprocessor at C = 768, are on their way at any time, by cp.async and so without registers. 2-byte accesses, and
rows of which not one fits beside another, are `shared`'s; so is backward, whose rows come the same way.
"""

from kernels.cuda import Kernel, blocks, most_shared
from kernels.cuda.layernorm.vector import AHEAD, SMS, forward_launch
from kernels.cuda.packing import pack_width, row_shape
from kernels.cuda.rmsnorm import shared

REQUIRES = ("sm80",)
DETERMINISTIC = True

forward_kernel = Kernel("vector.cu", "rmsnorm_forward", AHEAD=AHEAD)


def workspace(shape, phase):
    return shared.workspace(shape, phase)


def forward(x, weight, eps, *, out, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(out, x, weight, multiple_of=C), shared.FORWARD_ELEMENTS)
    per_sm, bytes_ahead = forward_launch(row, x.element_size(), most_shared(x))
    if not per_sm:
        shared.forward(x, weight, eps, out=out, rstd=rstd)
        return
    grid = min(blocks(B * T, row.ROWS), SMS * per_sm)
    launch = forward_kernel(grid, row.ROWS * row.THREADS, shared=bytes_ahead, BLOCKS=per_sm, **row.template)
    launch(out, rstd, x, weight, B * T, eps)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight, workspace):
    saved = dresidual, x, weight, rstd, accumulate
    shared.backward(dout, *saved, dx=dx, dweight=dweight, workspace=workspace)

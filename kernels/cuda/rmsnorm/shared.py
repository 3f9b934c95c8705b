"""A warp keeps a row in registers, so that memory is read once; the weight's gradient in two stages, without atomics.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte, so memory sets the pace. A row too long for a warp is a block's. Backward: as many blocks as fit at
once stay, the next row on its way while one is worked on, and each sums its rows' dweight in registers; a second kernel
adds the blocks.
"""

from kernels.cuda import Kernel, blocks, most_shared
from kernels.cuda.layernorm.shared import COLUMNS, MAX_PER_SM, SLICES, SMS, backward_launch
from kernels.cuda.packing import pack_width, row_shape

DETERMINISTIC = True  # rows go to blocks by their number, and the number of blocks is fixed by shape and alignment

FORWARD_ELEMENTS = 32  # of a row, in a thread's registers
BACKWARD_ELEMENTS = 32  # likewise
BACKWARD_SCALARS = 16  # … where each is loaded by itself, to an address of its own

forward_kernel = Kernel("shared.cu", "rmsnorm_forward")
rows_kernel = Kernel("shared.cu", "rmsnorm_backward_rows")
add_kernel = Kernel("shared.cu", "rmsnorm_add_partials")


def workspace(shape, phase):
    """Backward: fp32 sums of dweight for each block."""
    return SMS * MAX_PER_SM * shape["C"] * 4 if phase == "backward" else 0


def forward(x, weight, eps, *, out, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(out, x, weight, multiple_of=C), FORWARD_ELEMENTS)
    forward_kernel(grid=blocks(B * T, row.ROWS), block=row.ROWS * row.THREADS, **row.template)(
        out, rstd, x, weight, B * T, eps
    )


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight, workspace):
    B, T, C = x.shape
    N = pack_width(dx, dout, dresidual, x, weight, multiple_of=C)
    row = row_shape(C, N, BACKWARD_SCALARS if N == 1 else BACKWARD_ELEMENTS)
    per_sm, ahead, shared = backward_launch(row, x.element_size(), most_shared(x))
    count = min(SMS * per_sm, blocks(B * T, row.ROWS))
    launch = rows_kernel(
        grid=count, block=row.ROWS * row.THREADS, shared=shared, BLOCKS_PER_SM=per_sm, AHEAD=ahead, **row.template
    )
    launch(dx, workspace, dout, dresidual, x, weight, rstd, B * T)
    add_kernel(grid=blocks(C, COLUMNS), block=COLUMNS * SLICES)(dweight, workspace, count, C, accumulate)

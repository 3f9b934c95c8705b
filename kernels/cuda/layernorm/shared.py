"""A warp keeps a row in registers, so that memory is read once; weight gradients in two stages, without atomics.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte, so memory sets the pace. A row too long for a warp is a block's. Backward: as many blocks as fit at
once stay, and each sums its rows' dweight and dbias in registers; a second kernel adds the blocks.
"""

from functools import cache

from kernels.cuda import Kernel, blocks, most_shared
from kernels.cuda.packing import pack_width, row_shape

DETERMINISTIC = True  # rows go to blocks by their number, and the number of blocks is fixed by shape and alignment

FORWARD_ELEMENTS = 64  # of a row, in a thread's registers
BACKWARD_ELEMENTS = 24  # fewer, as there are two tensors and two running sums of them
BACKWARD_SCALARS = 16  # … where each is loaded by itself, to an address of its own
SMS = 132  # of an H100 or H200; a constant, so that sums come out the same on every card
REGISTERS_PER_SM = 65536
SHARED_PER_SM, RESERVED_SHARED = 228 << 10, 1 << 10  # bytes; the second: of each block, for the system
MAX_PER_SM = 8  # blocks
STATIC_SHARED = 256  # bytes, at most: the sums of a block's warps
STAGES, TENSORS, LEAST_COPY = 2, 3, 4  # of rows copied ahead, as in rows_in_turns.cuh; the least bytes of a copy
AHEAD_REGISTERS = 3  # an element
COLUMNS, SLICES = 32, 16  # of the second stage, as in shared.cu

forward_kernel = Kernel("shared.cu", "layernorm_forward")
rows_kernel = Kernel("shared.cu", "layernorm_backward_rows")
add_kernel = Kernel("shared.cu", "layernorm_add_partials")


def workspace(shape, phase):
    """Backward: fp32 sums of dweight and dbias for each block."""
    if phase == "forward":
        return 0
    return SMS * MAX_PER_SM * 2 * shape["C"] * 4


@cache
def backward_launch(row, size, most):
    """(blocks that fit on an SM at once, whether the next row is copied ahead, bytes of dynamic shared memory) of
    backward, for elements of so many bytes and at most so many bytes of shared memory; the compiler is told the first,
    and keeps to the registers they have."""
    threads, elements = row.ROWS * row.THREADS, row.PACKS * row.N
    sums = 4 * threads * elements if row.ROWS > 1 else 0
    two_rows = STAGES * TENSORS * size * threads * elements
    ahead = row.N * size >= LEAST_COPY and two_rows + STATIC_SHARED <= most
    shared = max(sums, two_rows if ahead else 0)
    registers = 48 + (AHEAD_REGISTERS if ahead else 5) * elements  # of a thread: seen with 5 to 24 elements
    by_memory = SHARED_PER_SM // (shared + RESERVED_SHARED)
    return max(1, min(MAX_PER_SM, by_memory, REGISTERS_PER_SM // (registers * threads))), ahead, shared


def forward(x, weight, bias, eps, *, out, mean, rstd):
    B, T, C = x.shape
    row = row_shape(C, pack_width(out, x, weight, bias, multiple_of=C), FORWARD_ELEMENTS)
    forward_kernel(grid=blocks(B * T, row.ROWS), block=row.ROWS * row.THREADS, **row.template)(
        out, mean, rstd, x, weight, bias, B * T, eps
    )


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias, workspace):
    B, T, C = x.shape
    N = pack_width(dx, dout, dresidual, x, weight, multiple_of=C)
    row = row_shape(C, N, BACKWARD_SCALARS if N == 1 else BACKWARD_ELEMENTS)
    per_sm, ahead, shared = backward_launch(row, x.element_size(), most_shared(x))
    count = min(SMS * per_sm, blocks(B * T, row.ROWS))
    launch = rows_kernel(
        grid=count, block=row.ROWS * row.THREADS, shared=shared, BLOCKS_PER_SM=per_sm, AHEAD=ahead, **row.template
    )
    launch(dx, workspace, dout, dresidual, x, weight, mean, rstd, B * T)
    add_kernel(grid=blocks(2 * C, COLUMNS), block=COLUMNS * SLICES)(dweight, dbias, workspace, count, C, accumulate)

"""Scores are read once: a row stays in a warp's registers, or, where it is too long, in a block's shared memory.

Floor: forward one read of every visible score and one write of every score, backward two reads and one write; masked
scores are not read. A long row takes maximum and sum in one pass (Milakov & Gimelshein 2018); what of it shared memory
cannot hold while two blocks share an SM is read a second time, which the L2 cache answers.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width, row_shape

DETERMINISTIC = True

ROW_ELEMENTS = 32  # of a row, in a thread's registers
LONGEST_ROW = 8192  # in registers
LONG_THREADS = 512  # of a block that has a longer row
LONG_PACKS = 4  # loads of a thread that are on their way at once
CACHE_BYTES = 112 * 1024  # of shared memory: two blocks on an SM of 228 KB

forward_row_kernel = Kernel("shared.cu", "softmax_forward_row")
backward_row_kernel = Kernel("shared.cu", "softmax_backward_row")
forward_long_kernel = Kernel("shared.cu", "softmax_forward_long", PACKS=LONG_PACKS, THREADS=LONG_THREADS)
backward_long_kernel = Kernel("shared.cu", "softmax_backward_long", PACKS=LONG_PACKS, THREADS=LONG_THREADS)


def forward(x, causal, *, out):
    R, S = x.shape
    N = pack_width(out, x, multiple_of=S)
    if S <= LONGEST_ROW:
        row = row_shape(S, N, ROW_ELEMENTS)
        forward_row_kernel(grid=blocks(R, row.ROWS), block=row.ROWS * row.THREADS, **row.template)(out, x, R, causal)
    else:
        cached = cached_columns(S, 1, x)
        forward_long_kernel(grid=R, block=LONG_THREADS, shared=cached * x.element_size(), N=N)(
            out, x, S, causal, cached
        )


def backward(dout, out, causal, *, dx):
    R, S = out.shape
    N = pack_width(dx, dout, out, multiple_of=S)
    if S <= LONGEST_ROW:
        row = row_shape(S, N, ROW_ELEMENTS)
        backward_row_kernel(grid=blocks(R, row.ROWS), block=row.ROWS * row.THREADS, **row.template)(
            dx, dout, out, R, causal
        )
    else:
        cached = cached_columns(S, 2, out)
        backward_long_kernel(grid=R, block=LONG_THREADS, shared=2 * cached * out.element_size(), N=N)(
            dx, dout, out, S, causal, cached
        )


def cached_columns(S, tensors, x):
    """How many columns of so many tensors fit into the cache; rounded up or down to whole 16 bytes."""
    whole = 16 // x.element_size()
    return min(blocks(S, whole) * whole, CACHE_BYTES // tensors // x.element_size() // whole * whole)

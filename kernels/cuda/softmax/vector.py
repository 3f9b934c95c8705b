"""Rows of a vocabulary: blocks that stay, with a row each in shared memory; as it leaves, the next one takes its place.

Floor: forward one read of every visible score and one write of every score, backward two reads and one write. Rows that
registers hold (to 8,192 columns) are `shared`'s, which has what it takes: at 1,024 columns in bf16 some 1,152 threads x
64 bytes = 72 KiB of a multiprocessor on their way (backward 144, causal half), where 4.8 TB/s ask for 25 to 64. Longer
ones it first reads and then writes, and where their length is odd by 2 bytes an access: 4 KiB a block, and 1.40 times
the bytes, backward 1.80 (counted at 50,257; here 1.00). Here threads copy ahead by cp.async, 16 bytes an access at any
length, to where they have just taken a pack from for the last time: one row's reads run beside the writes of the one
before, with up to a row of each block, 98 KiB, on its way (bf16, 50,257 columns: two blocks to a multiprocessor
forward, one of two tensors backward). In its reductions a block has nothing to ask for, as in fused_classifier. Rows
that do not fit, and tensors that do not begin at a multiple of 16 bytes, are `shared`'s as well.
"""

from kernels.cuda import Kernel, blocks, most_shared
from kernels.cuda.packing import pack_width
from kernels.cuda.softmax import shared

REQUIRES = ("sm80",)
DETERMINISTIC = True

SMS = 132  # of an H100 or H200
LONGEST_ROW = shared.LONGEST_ROW  # in registers
PACK_BYTES = 16  # as in packed.cuh
RESERVED = 1024  # bytes of shared memory left for the reductions, and at two blocks for the driver

forward_kernel = Kernel("vector.cu", "softmax_forward", PACKS=4)
backward_kernel = Kernel("vector.cu", "softmax_backward", PACKS=2)


def launch(kernel, tensors, S, R):
    """(the kernel's launch, packs of a row that shared memory has room for), for rows of so many columns of the inputs
    and, last, the output; None where they are short, or it has no room."""
    x = tensors[0]
    if S <= LONGEST_ROW or pack_width(*tensors) * x.element_size() < PACK_BYTES:
        return None
    N = PACK_BYTES // x.element_size()
    room = blocks(S + N - 1, N)  # the row may begin with a pack's last element
    size, most = (len(tensors) - 1) * room * PACK_BYTES, most_shared(x) - RESERVED
    if size > most:
        return None
    threads, per_sm = (512, 2) if 2 * size <= most else (1024, 1)
    return kernel(grid=min(R, SMS * per_sm), block=threads, shared=size, THREADS=threads), room


def forward(x, causal, *, out):
    R, S = x.shape
    if not (found := launch(forward_kernel, (x, out), S, R)):
        shared.forward(x, causal, out=out)
        return
    run, room = found
    run(out, x, R, S, causal, room)


def backward(dout, out, causal, *, dx):
    R, S = out.shape
    if not (found := launch(backward_kernel, (dout, out, dx), S, R)):
        shared.backward(dout, out, causal, dx=dx)
        return
    run, room = found
    run(dx, dout, out, R, S, causal, room)

"""All tensors in one launch, a sum of squares a block, 16 bytes an access; a second launch adds the sums in order.

Floor: one read of the gradients, two FLOPs an element; memory sets the pace. A block takes chunk after chunk and finds
its tensor by binary search; a thread's loads of a whole chunk depend on nothing, so that many are in flight. Blocks
leave 1024 sums at most, one for each thread of the second launch's only block, which waits for memory once. Squares are
summed in short fp32 chains, 4 or 8 a thread, everything above in double; a thread whose squares do not fit fp32 sums
them again in double. No atomics, so that the order is always the same.
"""

import math

from kernels.cuda import MAX_PARAMETER_BYTES, Kernel
from kernels.cuda.packing import Lists

DETERMINISTIC = True

THREADS = 256
CHUNK = 16384  # elements of a block
FINAL_THREADS = 1024
MOST_BLOCKS = 1024  # of a launch, 8 on a multiprocessor of an H100; a constant: the order is the same on any card
MOST_TENSORS = (MAX_PARAMETER_BYTES - 64) // 20  # of a launch: address, size and first chunk of each

square_kernel = Kernel("shared.cu", "sum_squares", THREADS=THREADS, CHUNK=CHUNK)
norm_kernel = Kernel("shared.cu", "norm_of_sums", THREADS=FINAL_THREADS)


def chunks(size):
    return -(-size // CHUNK)


def workspace(shape, phase):
    """A double for each block of each launch."""
    launches = -(-len(shape["tensors"]) // MOST_TENSORS)
    return 8 * min(MOST_BLOCKS * launches, sum(chunks(math.prod(sizes)) for sizes in shape["tensors"]))


lists = Lists(CHUNK, MOST_TENSORS)


def forward(grads, *, norm, workspace):
    done = 0
    for group in lists.groups(grads):
        count = min(MOST_BLOCKS, group.blocks)
        launch = square_kernel(grid=count, block=THREADS, TENSORS=group.count, N=group.width)
        launch(workspace[8 * done :], *group.tensors, group.sizes, group.firsts, group.blocks)
        done += count
    norm_kernel(grid=1, block=FINAL_THREADS)(norm, workspace, done)

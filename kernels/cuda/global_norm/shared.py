"""All tensors in one launch, a sum of squares a block, 16 bytes an access; a second launch adds the sums in order.

Floor: one read of the gradients, two FLOPs an element; memory sets the pace. A block finds its tensor and chunk by
binary search; a thread's loads of a whole chunk depend on nothing, so that many are in flight. Squares are summed in
short fp32 chains, 4 or 8 a thread, everything above in double; a thread whose squares do not fit fp32 sums them again
in double. No atomics, so that the order is always the same.
"""

import math

from kernels.cuda import MAX_PARAMETER_BYTES, Kernel
from kernels.cuda.packing import Lists

DETERMINISTIC = True

THREADS = 256
CHUNK = 16384  # elements of a block
FINAL_THREADS = 1024
MOST_TENSORS = (MAX_PARAMETER_BYTES - 64) // 20  # of a launch: address, size and first chunk of each

square_kernel = Kernel("shared.cu", "sum_squares", THREADS=THREADS, CHUNK=CHUNK)
norm_kernel = Kernel("shared.cu", "norm_of_sums", THREADS=FINAL_THREADS)


def chunks(size):
    return -(-size // CHUNK)


def workspace(shape, phase):
    """A double for each chunk of each tensor."""
    return 8 * sum(chunks(math.prod(sizes)) for sizes in shape["tensors"])


lists = Lists(CHUNK, MOST_TENSORS)


def forward(grads, *, norm, workspace):
    done = 0
    for group in lists.groups(grads):
        launch = square_kernel(grid=group.blocks, block=THREADS, TENSORS=group.count, N=group.width)
        launch(workspace[8 * done :], *group.tensors, group.sizes, group.firsts)
        done += group.blocks
    norm_kernel(grid=1, block=FINAL_THREADS)(norm, workspace, done)

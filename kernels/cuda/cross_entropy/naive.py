"""One thread a row: maximum, sum of exponentials, logarithm; neighbouring threads read addresses a whole row apart.

Floor: forward one read of the logits, backward one read and one write; memory sets the pace. Here forward reads a row
twice, each thread its own; backward is one thread an element, and already reads and writes as memory likes it.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

ROW_THREADS = 32  # few, so that a few thousand rows are spread over all multiprocessors
ELEMENT_THREADS = 256

forward_kernel = Kernel("naive.cu", "cross_entropy_forward")
backward_kernel = Kernel("naive.cu", "cross_entropy_backward")


def forward(logits, targets, V, *, losses, lse):
    rows, VP = targets.numel(), logits.shape[-1]
    forward_kernel(grid=blocks(rows, ROW_THREADS), block=ROW_THREADS)(losses, lse, logits, targets, rows, V, VP)


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    rows, VP = targets.numel(), logits.shape[-1]
    grid = blocks(logits.numel(), ELEMENT_THREADS)
    backward_kernel(grid=grid, block=ELEMENT_THREADS)(dlogits, dlosses, logits, targets, lse, rows, V, VP)

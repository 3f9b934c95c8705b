"""One thread a row: its loss, then its gradient over the logits; neighbouring threads are a whole row apart.

Floor: one read and one write of the logits; memory sets the pace. Here each row is read three times and written once,
and a warp's 32 threads touch 32 distant addresses at a time.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

THREADS = 32  # few, so that a few thousand rows are spread over all multiprocessors

forward_kernel = Kernel("naive.cu", "fused_classifier")


def forward(targets, dlosses, V, *, logits, losses):
    rows, VP = targets.numel(), logits.shape[-1]
    forward_kernel(grid=blocks(rows, THREADS), block=THREADS)(logits, losses, targets, dlosses, rows, V, VP)

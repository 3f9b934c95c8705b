"""One thread a row: the edges of top-k and top-p bit by bit, each bit a pass over the row.

Floor: one read of the logits; here up to two passes for each bit of the dtype, by one thread.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True

THREADS = 32

forward_kernel = Kernel("naive.cu", "sampling_forward")


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    B, VP = logits.shape
    forward_kernel(grid=blocks(B, THREADS), block=THREADS)(
        token, logits, u, B, V, VP, float(temperature), top_k, float(top_p)
    )

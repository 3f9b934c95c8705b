"""One block a row: largest, and the edges of top-k and top-p bit by bit, with sums of whole numbers that have no order.

Floor: one read of the logits. The first pass is that; each bit of an edge is a pass over what the caches hold then, and
an exchange between warps: 16 bits of a 16-bit logit, 32 of fp32. Without top-k and top-p there are three passes.
"""

from kernels.cuda import Kernel

DETERMINISTIC = True

THREADS = 1024

forward_kernel = Kernel("shared.cu", "sampling_forward", THREADS=THREADS)


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    B, VP = logits.shape
    forward_kernel(grid=B, block=THREADS)(token, logits, u, V, VP, float(temperature), top_k, float(top_p))

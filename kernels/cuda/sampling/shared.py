"""One block a row: largest, and the edges of top-k and top-p bit by bit, with sums of whole numbers that have no order.

Floor: one read of the logits. The first pass is that; each bit of an edge is a pass over what the caches hold then, and
an exchange between warps: 16 bits of a 16-bit logit, 32 of fp32. Without top-k and top-p there are three passes.
"""

from kernels.cuda import Kernel

DETERMINISTIC = True

LEAST, MOST = 64, 1024  # threads
EACH = 16  # logits of a thread, where there are so few

forward_kernel = Kernel("shared.cu", "sampling_forward")


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    B, VP = logits.shape
    threads = min(MOST, max(LEAST, 1 << (-(-V // EACH) - 1).bit_length()))
    forward_kernel(grid=B, block=threads, THREADS=threads)(
        token, logits, u, V, VP, float(temperature), top_k, float(top_p)
    )

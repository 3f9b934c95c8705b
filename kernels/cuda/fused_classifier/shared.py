"""One block a row, which waits in shared memory between its loss and its gradient: one read, one write of the logits.

Floor: one read and one write of the logits; memory sets the pace. GPT-2's rows are 98 KiB in bf16, two blocks to a
multiprocessor, and 196 KiB in fp32, one block. A row that does not fit is read twice, the second time from its end.
A running maximum and sum take one pass, so that exp, twice an element, hides behind loading and storing.
"""

from kernels.cuda import Kernel, most_shared
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

PACKS = 4  # loads of a thread in flight
RESERVED = 1024  # bytes of shared memory left for the reductions, and at two blocks for the driver

forward_kernel = Kernel("shared.cu", "fused_classifier", PACKS=PACKS)


def forward(targets, dlosses, V, *, logits, losses):
    rows, VP = targets.numel(), logits.shape[-1]
    row_bytes, most = VP * logits.element_size(), most_shared(logits) - RESERVED
    keep = row_bytes <= most
    threads = 512 if 2 * row_bytes <= most or not keep else 1024  # as many as fill a multiprocessor either way
    N = pack_width(logits, multiple_of=VP)
    launch = forward_kernel(grid=rows, block=threads, shared=row_bytes if keep else 0, N=N, THREADS=threads, KEEP=keep)
    launch(logits, losses, targets, dlosses, V, VP)

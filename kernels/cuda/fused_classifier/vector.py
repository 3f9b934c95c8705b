"""Blocks that stay, with one row each in shared memory: as its gradient leaves, the next row's logits take its place.

Floor: one read and one write of the logits; memory sets the pace. A block of `shared` reads, then writes, and leaves it
to a second one on the multiprocessor, or in fp32 to nobody, that the other direction is busy too. Here each thread
copies ahead, 16 bytes at a time by cp.async, to where it has just taken an element from for the last time: reads of one
row run beside writes of the one before, and no registers wait for them. A thread reads only what it copied itself, so
the reductions' barriers are all there are. GPT-2's rows are 98 KiB in bf16, two blocks to a multiprocessor, whose
reductions do not coincide; 196 KiB in fp32, one block. A row that does not fit is `shared`'s.
"""

from kernels.cuda import Kernel, most_shared
from kernels.cuda.fused_classifier import shared
from kernels.cuda.packing import pack_width

REQUIRES = ("sm80",)
DETERMINISTIC = True

SMS = 132  # of an H100 or H200
PACKS = 4  # of a thread that are worked on together

forward_kernel = Kernel("vector.cu", "fused_classifier", PACKS=PACKS)


def forward(targets, dlosses, V, *, logits, losses):
    rows, VP = targets.numel(), logits.shape[-1]
    row_bytes, most = VP * logits.element_size(), most_shared(logits) - shared.RESERVED
    if row_bytes > most:
        shared.forward(targets, dlosses, V, logits=logits, losses=losses)
        return
    threads, per_sm = (512, 2) if 2 * row_bytes <= most else (1024, 1)
    N = pack_width(logits, multiple_of=VP)
    launch = forward_kernel(grid=min(rows, SMS * per_sm), block=threads, shared=row_bytes, N=N, THREADS=threads)
    launch(logits, losses, targets, dlosses, rows, V, VP)

"""A stream that never ends: this row's batches, and behind them the next one's, 16 bytes an access at any length.

Floor: forward one read of the logits, backward one read and one write; memory sets the pace. `shared` has up to 96 KiB
of a multiprocessor on their way, but begins anew with each row, after its reductions and two loads for the target; and
where rows are of an odd length (GPT-2's own 50,257, unpadded) its accesses are of 2 bytes, 12 KiB in all, where 4.8
TB/s ask for 25 and more, and move 1.40 times the bytes (counted; here 1.00). Here blocks stay, and each thread copies
its packs of all its rows in their order to shared memory, by cp.async: 1,536 threads x 64 to 96 bytes = 96 to 144 KiB
at any time, in every dtype and without registers. Packs are taken where memory is aligned, and what of the first and
last is not the row's is masked. The logit of the target is kept by the thread that meets it. A tensor that does not
begin at a multiple of 16 bytes is `shared`'s.
"""

from kernels.cuda import Kernel
from kernels.cuda.cross_entropy import shared
from kernels.cuda.packing import pack_width

REQUIRES = ("sm80",)
DETERMINISTIC = True

SMS = 132  # of an H100 or H200
THREADS, BLOCKS = 256, 6  # of a block, and of a multiprocessor
PACK_BYTES = 16  # as in packed.cuh
PACKS, STAGES = 2, 3  # of a thread in a batch, and batches on their way
GEOMETRY = dict(THREADS=THREADS, PACKS=PACKS, STAGES=STAGES, BLOCKS=BLOCKS)

forward_kernel = Kernel("vector.cu", "cross_entropy_forward", **GEOMETRY)
backward_kernel = Kernel("vector.cu", "cross_entropy_backward", **GEOMETRY)


def launch(kernel, rows):
    return kernel(grid=min(rows, SMS * BLOCKS), block=THREADS, shared=THREADS * PACKS * STAGES * PACK_BYTES)


def forward(logits, targets, V, *, losses, lse):
    rows, VP = targets.numel(), logits.shape[-1]
    if pack_width(logits) * logits.element_size() < PACK_BYTES:
        shared.forward(logits, targets, V, losses=losses, lse=lse)
        return
    launch(forward_kernel, rows)(losses, lse, logits, targets, rows, V, VP)


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    rows, VP = targets.numel(), logits.shape[-1]
    if pack_width(logits, dlogits) * logits.element_size() < PACK_BYTES:
        shared.backward(dlosses, logits, targets, lse, V, dlogits=dlogits)
        return
    launch(backward_kernel, rows)(dlogits, dlosses, logits, targets, lse, rows, V, VP)

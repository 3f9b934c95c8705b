"""One block a row, read once: each thread keeps a running maximum and sum, 16 bytes a load, four loads in flight.

Floor: forward one read of the logits, backward one read and one write; memory sets the pace. exp is one instruction of
the special-function unit, 16 a clock on a multiprocessor: in bf16 that is about half the time that memory takes.
"""

from kernels.cuda import Kernel
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

THREADS = 512
PACKS = 4  # loads of a thread in flight

forward_kernel = Kernel("shared.cu", "cross_entropy_forward", THREADS=THREADS, PACKS=PACKS)
backward_kernel = Kernel("shared.cu", "cross_entropy_backward", THREADS=THREADS, PACKS=PACKS)


def forward(logits, targets, V, *, losses, lse):
    rows, VP = targets.numel(), logits.shape[-1]
    N = pack_width(logits, multiple_of=VP)
    forward_kernel(grid=rows, block=THREADS, N=N)(losses, lse, logits, targets, V, VP)


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    rows, VP = targets.numel(), logits.shape[-1]
    N = pack_width(logits, dlogits, multiple_of=VP)
    backward_kernel(grid=rows, block=THREADS, N=N)(dlogits, dlosses, logits, targets, lse, V, VP)

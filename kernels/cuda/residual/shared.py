"""16 bytes a thread from each input, both on their way at once: a copy with one addition on top.

Floor: two reads and one write an element; a twelfth of a FLOP a byte in fp32, so memory sets the pace. A full SM has
64 KB of loads in flight, twice what hides the latency of HBM, so one pack a thread is enough.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True
THREADS = 256

forward_kernel = Kernel("shared.cu", "residual_forward")


def forward(a, b, *, out):
    n = out.numel()
    N = pack_width(out, a, b)
    forward_kernel(grid=blocks(n, THREADS * N), block=THREADS, N=N)(out, a, b, n)

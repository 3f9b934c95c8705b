"""16 bytes an access from gates and ups alike; one exponential of -|g| and one reciprocal give both tails of silu.

Floor: forward two reads and one write an element of out, backward three reads and two writes; 4 and 11 FLOPs, so
memory sets the pace. A thread has two or three packs on their way at once.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import WARP, pack_width

DETERMINISTIC = True
THREADS = 256  # of a block, at most

forward_kernel = Kernel("shared.cu", "swiglu_forward")
backward_kernel = Kernel("shared.cu", "swiglu_backward")


def geometry(M, H, N):
    """A row's packs in one block, or in several side by side."""
    packs = H // N
    threads = min(THREADS, blocks(packs, WARP) * WARP)
    return dict(grid=(M, blocks(packs, threads)), block=threads)


def forward(x, *, out):
    M, H = out.shape
    N = pack_width(out, x, multiple_of=H)
    forward_kernel(**geometry(M, H, N), N=N)(out, x, H)


def backward(dout, x, *, dx):
    M, H = dout.shape
    N = pack_width(dx, dout, x, multiple_of=H)
    backward_kernel(**geometry(M, H, N), N=N)(dx, dout, x, H)

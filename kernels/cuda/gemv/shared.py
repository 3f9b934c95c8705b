"""A block takes four rows of weight, 16 bytes an access, and meets them with all rows of x; sums pass through shared.

Floor: every weight read once, at the bandwidth of the GPU's memory; x comes from the caches. Four rows side by side
keep enough bytes on their way in each thread, and share what is read of x; the inner dimension is the block's, so that
768 outputs still fill the GPU. The M x 4 sums of a warp are added by halving what each lane holds.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

THREADS, ROWS = 128, 4  # as in shared.cu
MOST_ROWS = 8  # of x: their sums with ROWS of weight are a warp's lanes

forward_kernel = Kernel("shared.cu", "gemv_forward")


def supports(shape):
    return shape["M"] <= MOST_ROWS or f"more than {MOST_ROWS} rows"


def forward(x, weight, *, out):
    (M, K), N = x.shape, weight.shape[0]
    width, most = pack_width(x, weight, multiple_of=K), 1 << (M - 1).bit_length()
    forward_kernel(grid=blocks(N, ROWS), block=THREADS, MOST=most, N=width)(out, x, weight, M, N, K)

"""A group in the registers of a few neighbouring lanes, 16 bytes a load: read once; the largest by exchanges of lanes.

Floor: x read once, a byte an element and a scale a group written; memory sets the pace.
"""

import math

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

THREADS, WARP = 256, 32

forward_kernel = Kernel("shared.cu", "q8_quantise_forward", THREADS=THREADS)


def forward(x, G, *, q, scales):
    K, KG, groups = x.shape[1], scales.shape[1], scales.numel()
    N = pack_width(x, multiple_of=math.gcd(G, K))
    while q.data_ptr() % N:
        N //= 2
    packs = -(-min(G, K) // N)  # of a group
    LANES = min(WARP, 1 << (packs - 1).bit_length())
    sizes = dict(N=N, LANES=LANES, PACKS=-(-packs // LANES))
    forward_kernel(grid=blocks(groups * LANES, THREADS), block=THREADS, **sizes)(q, scales, x, groups, K, G, KG)

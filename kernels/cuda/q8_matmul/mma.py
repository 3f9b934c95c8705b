"""int8 tensor cores (mma.sync, m16n8k32): a tile of 64 x 64 a block, four stages of cp.async; few rows are shared's.

Floor: weight read once for every 64 rows of x, a byte an element; the arithmetic is 2 M N K at the rate of int8 mma.
What limits it: a group's whole numbers are scaled before the next group's are added, 12 loads of scales and 32 fused
additions a thread for every 64 bytes of a row.
"""

import math

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width
from kernels.cuda.q8_matmul import shared

REQUIRES = ("sm80",)
DETERMINISTIC = True

TILE, THREADS = 64, 128  # as in the source
tiles_kernel = Kernel("mma.cu", "q8_matmul_mma")


def forward(x, x_scales, weight, scales, G, *, out):
    (M, K), N, KG = x.shape, len(weight), scales.shape[1]
    if M <= shared.FEW:
        shared.forward(x, x_scales, weight, scales, G, out=out)
        return
    width = pack_width(x, weight, multiple_of=math.gcd(G, K))
    grid = blocks(N, TILE), blocks(M, TILE)
    launch = tiles_kernel(grid=grid, block=THREADS, BYTES=width if width >= 4 else 1)
    launch(out, x, x_scales, weight, scales, M, N, K, G, KG)

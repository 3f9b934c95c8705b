"""dp4a, four products an instruction: up to eight rows of x half a warp a row of weight, else tiles in shared memory.

Floor: weight read once, a byte an element and a scale a group: with few rows of x memory sets the pace, and 16 bytes a
load reach it. Tiles of 64 x 64 read weight once for 64 rows of x; tensor cores would do that arithmetic faster.
"""

import math

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

FEW = 8  # rows of x
LANES, THREADS = 16, 128
TILE, TILE_THREADS = 64, 256  # as in the source

rows_kernel = Kernel("shared.cu", "q8_matmul_rows", LANES=LANES, THREADS=THREADS)
tiles_kernel = Kernel("shared.cu", "q8_matmul_tiles")


def forward(x, x_scales, weight, scales, G, *, out):
    (M, K), N, KG = x.shape, len(weight), scales.shape[1]
    width = pack_width(x, weight, multiple_of=math.gcd(G, K))
    if M > FEW:
        grid = blocks(N, TILE), blocks(M, TILE)
        BYTES = 4 if width >= 4 else 1
        tiles_kernel(grid=grid, block=TILE_THREADS, BYTES=BYTES)(out, x, x_scales, weight, scales, M, N, K, G, KG)
        return
    SHARE = min(LANES, 1 << (max(1, G // width).bit_length() - 1))  # lanes of a group
    rows_kernel(grid=blocks(N * LANES, THREADS), block=THREADS, M=M, BYTES=width, SHARE=SHARE)(
        out, x, x_scales, weight, scales, N, K, G, KG
    )

"""16 bytes an access; a thread turns the same channels of four heads, so that it reads cosines and sines once for all.

Floor: one read and one write of the heads that are turned; the table stays in L2. A thread asks for all of its heads
before it turns one: 64 bytes on their way, twice as many where pairs are half a head apart.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True
THREADS = 256
HEADS = 4  # of a thread

interleaved_kernel = Kernel("shared.cu", "rope_interleaved", HEADS=HEADS)
halves_kernel = Kernel("shared.cu", "rope_halves", HEADS=HEADS)


def turn(x, start, cos, sin, R, style, sign):
    B, T, H, HS = x.shape
    if style == "interleaved":
        kernel, N = interleaved_kernel, pack_width(x, cos, sin, multiple_of=HS)
        packs = HS // max(2, N)
    else:
        kernel, N = halves_kernel, pack_width(x, cos, sin, multiple_of=HS // 2)
        packs = HS // 2 // N
    groups = blocks(R, HEADS)
    across = min(packs, THREADS)
    heads = min(groups, THREADS // across)
    tokens = min(T, THREADS // (across * heads), 64)  # 64: the most that a block may have along z
    grid = blocks(T, tokens), blocks(groups, heads), B
    kernel(grid=grid, block=(across, heads, tokens), N=N)(x, start, cos, sin, T, H, R, HS, groups, packs, sign)


def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv, start, cos, sin, R, style, 1.0)


def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv, start, cos, sin, R, style, -1.0)

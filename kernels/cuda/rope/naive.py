"""One thread a pair: reads both channels, its cosine and its sine, and writes both back.

Floor: one read and one write of the heads that are turned; the table stays in L2. Six FLOPs for four accesses, so
memory sets the pace. Where pairs lie side by side, neighbouring threads access every other element.
"""

from kernels.cuda import Kernel, blocks

DETERMINISTIC = True
THREADS = 256

rope_kernel = Kernel("naive.cu", "rope")


def turn(x, start, cos, sin, R, style, sign):
    B, T, H, HS = x.shape
    n = B * T * R * (HS // 2)
    rope_kernel(grid=blocks(n, THREADS), block=THREADS)(
        x, start, cos, sin, n, T, H, R, HS // 2, style == "interleaved", sign
    )


def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv, start, cos, sin, R, style, 1.0)


def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv, start, cos, sin, R, style, -1.0)

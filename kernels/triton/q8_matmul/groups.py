"""A group of a tile of weight a step: sums of products for up to eight rows of x, else tl.dot in fp16, which is exact.

Floor: weight read once, a byte an element and a scale a group: with few rows of x memory sets the pace. Of many the
tensor cores take the products in fp16, at half of int8's rate: numbers up to 127 are exact in it, and so are sums
of 256 of their products in fp32.
"""

import triton
import triton.language as tl

from kernels.triton import blocks, power_of_2
from kernels.triton.launching import jit

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

FEW = 8  # rows of x
STEP, DOT_STEP = 256, 128  # of a group at a time, at most
ELEMENTS = 4096  # of a tile of weight
TILE_M, TILE_N, LEAST_DEPTH = 64, 64, 16  # of a tile that tl.dot makes


@triton.jit
def int8s(at, inside):
    return tl.load(at, mask=inside, other=0)


@jit(do_not_specialize=["N"])
def rows(out, x, x_scales, weight, scales, N, K, G, KG, M: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = n.to(tl.int64) * K
    for m in tl.static_range(M):
        sums = tl.zeros((COLUMNS,), tl.float32)
        for g in range(KG):
            dots = tl.zeros((COLUMNS,), tl.int32)
            stop = tl.minimum(K, (g + 1) * G)
            for start in range(g * G, stop, STEP):
                k = start + tl.arange(0, STEP)
                w = int8s(weight + row[:, None] + k[None, :], (n < N)[:, None] & (k < stop)[None, :])
                mine = int8s(x + m * K + k, k < stop)
                dots += tl.sum(w.to(tl.int32) * mine.to(tl.int32)[None, :], 1)
            scale = tl.load(scales + n.to(tl.int64) * KG + g, mask=n < N, other=0.0)
            sums += dots.to(tl.float32) * (scale * tl.load(x_scales + m * KG + g))
        tl.store(out + m * N + n, sums.to(out.dtype.element_ty), mask=n < N)


@jit(do_not_specialize=["M", "N"])
def tiles(
    out, x, x_scales, weight, scales, M, N, K, G, KG,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * TILE_M + tl.arange(0, TILE_M)
    n = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    a, b = m.to(tl.int64), n.to(tl.int64)
    sums = tl.zeros((TILE_M, TILE_N), tl.float32)
    for g in range(KG):
        stop = tl.minimum(K, (g + 1) * G)
        x_scale = tl.load(x_scales + a * KG + g, mask=m < M, other=0.0)
        scale = tl.load(scales + b * KG + g, mask=n < N, other=0.0)
        for start in range(g * G, stop, STEP):
            k = start + tl.arange(0, STEP)
            mine = int8s(x + (a * K)[:, None] + k[None, :], (m < M)[:, None] & (k < stop)[None, :])
            theirs = int8s(weight + (b * K)[None, :] + k[:, None], (n < N)[None, :] & (k < stop)[:, None])
            dots = tl.dot(mine.to(tl.float16), theirs.to(tl.float16))
            sums += dots * (x_scale[:, None] * scale[None, :])
    at = out + (a * N)[:, None] + n[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def forward(x, x_scales, weight, scales, G, *, out):
    (M, K), N, KG = x.shape, len(weight), scales.shape[1]
    group = power_of_2(min(G, K))
    if M > FEW:
        grid = blocks(N, TILE_N), blocks(M, TILE_M)
        step = min(DOT_STEP, max(LEAST_DEPTH, group))
        sizes = dict(TILE_M=TILE_M, TILE_N=TILE_N, STEP=step, num_warps=4)
        tiles[grid](out, x, x_scales, weight, scales, M, N, K, G, KG, **sizes)
        return
    step = min(STEP, group)
    columns = max(1, min(ELEMENTS // step, 64))
    sizes = dict(M=M, COLUMNS=columns, STEP=step, num_warps=4)
    rows[(blocks(N, columns),)](out, x, x_scales, weight, scales, N, K, G, KG, **sizes)

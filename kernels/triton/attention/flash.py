"""Tiles of queries meet tiles of keys on tensor cores under a running softmax; backward by queries, then by keys.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or written
once. Beside them stands one exp2 a pair: at HS = 64 a Hopper SM needs as long for it as for the tensor cores' work, so
two programs to a multiprocessor, of which one multiplies while the other takes exponents, matter more than large tiles.
Tiles above the diagonal, or behind a window, are skipped, and only those on it (or over the end) are masked.

Backward has a kernel whose programs own queries (dq, and on the way delta = sum(dout * out)) and one whose programs own
keys (dk, dv, of all query heads that share them): no atomics, the same bits each time, but scores and their gradients
are worked out twice (14 HS instead of 10). Scratch is two floats a query. p and ds are rounded to the inputs' dtype for
the tensor cores, sums are fp32; in fp32 everything is.
"""

import torch
import triton
import triton.language as tl

from kernels.triton import blocks, power_of_2
from kernels.triton.attention_tiles import (
    add_dkdv,
    add_dq,
    attend,
    find_statistics,
    keys_in_window,
    keys_of,
    load_statistics,
    masked_keys,
    masked_queries,
    masked_span,
    place,
    queries_in_window,
    queries_of,
)
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E
from kernels.triton.tuning import Tiles, tune

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
TENSOR_CORES = True
# Bytes: forward in fp32 with a window, which ptxas holds to 80 registers (24 by Triton 3.9); on sm_100a in bf16, too.
SPILLS = {"sm_80": 36, "sm_90a": 36, "sm_100a": 48}

# BM queries against BN keys. Hopper gets programs of one warpgroup where their registers let two or three of them share
# a multiprocessor: they do not wait for each other, and so products meet exponents. Ampere's warps take 32 rows each
# where that fits, since every warp reads the other operand from shared memory once.
FORWARD = Tiles(
    half={
        80: [
            dict(BM=128, BN=64, num_warps=4, num_stages=3),
            dict(BM=128, BN=32, num_warps=4, num_stages=4),
            dict(BM=64, BN=64, num_warps=4, num_stages=3),
        ],
        90: [
            dict(BM=128, BN=64, num_warps=4, num_stages=3),
            dict(BM=128, BN=64, num_warps=8, num_stages=3),
            dict(BM=128, BN=128, num_warps=8, num_stages=2),
            dict(BM=64, BN=64, num_warps=4, num_stages=3),
        ],
    },
    fp32={80: [dict(BM=64, BN=32, num_warps=8, num_stages=2), dict(BM=32, BN=32, num_warps=4, num_stages=2)]},
)
DQ = Tiles(
    half={
        80: [
            dict(BM=128, BN=32, num_warps=4, num_stages=2),
            dict(BM=128, BN=64, num_warps=8, num_stages=2),
            dict(BM=64, BN=64, num_warps=4, num_stages=2),
        ],
        90: [
            dict(BM=64, BN=64, num_warps=4, num_stages=3),
            dict(BM=128, BN=64, num_warps=8, num_stages=4),
            dict(BM=64, BN=64, num_warps=4, num_stages=2),
        ],
    },
    fp32={80: [dict(BM=32, BN=32, num_warps=8, num_stages=1)]},
)
DKDV = Tiles(
    half={
        80: [
            dict(BM=32, BN=64, num_warps=4, num_stages=2),  # with 64 queries Triton 3.9 spills
            dict(BM=16, BN=128, num_warps=4, num_stages=3),
            dict(BM=64, BN=128, num_warps=8, num_stages=3),
        ],
        90: [
            dict(BM=64, BN=64, num_warps=4, num_stages=2),
            dict(BM=64, BN=128, num_warps=8, num_stages=3),
            dict(BM=32, BN=64, num_warps=4, num_stages=2),
        ],
    },
    fp32={80: [dict(BM=32, BN=32, num_warps=8, num_stages=1)]},
)
# For head sizes above 64.
WIDE_FORWARD = Tiles(
    half={
        80: [dict(BM=64, BN=64, num_warps=4, num_stages=2), dict(BM=128, BN=64, num_warps=8, num_stages=2)],
        90: [dict(BM=128, BN=128, num_warps=8, num_stages=2), dict(BM=64, BN=64, num_warps=4, num_stages=2)],
    },
    fp32={80: [dict(BM=32, BN=16, num_warps=8, num_stages=2)]},  # with 64 queries and a long window it spills 1.2 KB
)
WIDE_DQ = Tiles(
    half={
        80: [dict(BM=64, BN=32, num_warps=4, num_stages=2), dict(BM=128, BN=32, num_warps=8, num_stages=2)],
        90: [dict(BM=64, BN=64, num_warps=4, num_stages=2), dict(BM=128, BN=64, num_warps=8, num_stages=2)],
    },
    fp32={80: [dict(BM=32, BN=16, num_warps=8, num_stages=2)]},  # with 32 keys Triton 3.6 spills 3.9 KB
)
WIDE_DKDV = Tiles(
    half={
        80: [dict(BM=32, BN=64, num_warps=8, num_stages=2), dict(BM=16, BN=64, num_warps=4, num_stages=2)],
        90: [dict(BM=32, BN=64, num_warps=4, num_stages=2), dict(BM=32, BN=128, num_warps=8, num_stages=2)],
    },
    fp32={80: [dict(BM=16, BN=32, num_warps=8, num_stages=1)]},
)


@triton.jit
def head_at(head, T, stride, NH, HS: tl.constexpr):
    """Offset of a head's first row, where rows of (B, T, …) are `stride` apart; `head` counts B * NH."""
    return (head // NH).to(tl.int64) * T * stride + head % NH * HS


@triton.jit
def load_rows(x, first, T, stride, HS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, INSIDE: tl.constexpr):
    """(ROWS, WIDTH): the rows of a head from `first` on; 0 from column HS on and, if not all INSIDE, from row T on."""
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = x + first.to(tl.int64) * stride + row[:, None] * stride + column[None, :]
    if INSIDE and HS == WIDTH:
        return tl.load(at)
    if INSIDE:
        return tl.load(at, mask=(column < HS)[None, :], other=0)
    return tl.load(at, mask=(first + row < T)[:, None] & (column < HS)[None, :], other=0)


@triton.jit
def store_rows(x, values, first, T, stride, HS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The counterpart of load_rows, from fp32."""
    row, column = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    at = x + first.to(tl.int64) * stride + row[:, None] * stride + column[None, :]
    tl.store(at, values.to(x.dtype.element_ty), mask=(first + row < T)[:, None] & (column < HS)[None, :])


@jit(do_not_specialize=["T", "heads", "NH"])
def attention_forward(
    out, lse, q, k, v, T, stride, heads, NH, scale,
    GROUP: tl.constexpr, HS: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr = 0,
):  # fmt: skip
    tiles = tl.cdiv(T, BM)
    head, tile = place(heads, tiles)
    first = (tiles - 1 - tile) * BM if CAUSAL else tile * BM  # causal: those that see most keys begin first
    query = first + tl.arange(0, BM)
    q += head_at(head, T, stride, NH, HS)
    k += head_at(head // GROUP, T, stride, NH // GROUP, HS)
    v += head_at(head // GROUP, T, stride, NH // GROUP, HS)
    q_tile = load_rows(q, first, T, stride, HS, BM, WIDTH, EVEN)

    sums = tl.zeros((BM, WIDTH), tl.float32)
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    full, seen = keys_of(first, T, BM, BN, CAUSAL, EVEN)
    begin, whole = keys_in_window(first, full, BM, BN, WINDOW)
    if CAUSAL or EVEN:
        for j in tl.range(whole, full, BN):
            k_tile = load_rows(k, j, T, stride, HS, BN, WIDTH, True)
            v_tile = load_rows(v, j, T, stride, HS, BN, WIDTH, True)
            key = j + tl.arange(0, BN)
            sums, largest, total = attend(
                sums, largest, total, q_tile, k_tile, v_tile, query, key, T, scale, CAUSAL, False
            )
    if CAUSAL or not EVEN:
        for i in tl.range(full - (whole - begin), seen, BN):
            j = masked_keys(i, whole, full, WINDOW)
            k_tile = load_rows(k, j, T, stride, HS, BN, WIDTH, EVEN)
            v_tile = load_rows(v, j, T, stride, HS, BN, WIDTH, EVEN)
            key = j + tl.arange(0, BN)
            sums, largest, total = attend(
                sums, largest, total, q_tile, k_tile, v_tile, query, key, T, scale, CAUSAL, True, WINDOW
            )

    out += head_at(head, T, NH * HS, NH, HS)
    store_rows(out, sums * (1 / total)[:, None], first, T, NH * HS, HS, BM, WIDTH)
    # lse = ln(sum of 2^x) = (largest x + log2(total)) / log2(e)
    tl.store(lse + head.to(tl.int64) * T + query, (largest * scale + tl.log2(total)) / LOG2_E, mask=query < T)


@jit(do_not_specialize=["T", "heads", "NH"])
def attention_dq(
    dq, statistics, dout, q, k, v, out, lse, T, stride, heads, NH, scale,
    GROUP: tl.constexpr, HS: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr = 0,
):  # fmt: skip
    tiles = tl.cdiv(T, BM)
    head, tile = place(heads, tiles)
    first = (tiles - 1 - tile) * BM if CAUSAL else tile * BM  # causal: those that see most keys begin first
    query = first + tl.arange(0, BM)
    at, out_at = head_at(head, T, stride, NH, HS), head_at(head, T, NH * HS, NH, HS)
    k += head_at(head // GROUP, T, stride, NH // GROUP, HS)
    v += head_at(head // GROUP, T, stride, NH // GROUP, HS)
    q_tile = load_rows(q + at, first, T, stride, HS, BM, WIDTH, EVEN)
    dout_tile = load_rows(dout + out_at, first, T, NH * HS, HS, BM, WIDTH, EVEN)
    out_tile = load_rows(out + out_at, first, T, NH * HS, HS, BM, WIDTH, EVEN)
    lse2, delta = find_statistics(statistics, lse, dout_tile, out_tile, head, heads, query, T)

    sums = tl.zeros((BM, WIDTH), tl.float32)
    full, seen = keys_of(first, T, BM, BN, CAUSAL, EVEN)
    begin, whole = keys_in_window(first, full, BM, BN, WINDOW)
    if CAUSAL or EVEN:
        for j in tl.range(whole, full, BN):
            k_tile = load_rows(k, j, T, stride, HS, BN, WIDTH, True)
            v_tile = load_rows(v, j, T, stride, HS, BN, WIDTH, True)
            key = j + tl.arange(0, BN)
            sums = add_dq(sums, q_tile, dout_tile, k_tile, v_tile, lse2, delta, query, key, T, scale, CAUSAL, False)
    if CAUSAL or not EVEN:
        for i in tl.range(full - (whole - begin), seen, BN):
            j = masked_keys(i, whole, full, WINDOW)
            k_tile = load_rows(k, j, T, stride, HS, BN, WIDTH, EVEN)
            v_tile = load_rows(v, j, T, stride, HS, BN, WIDTH, EVEN)
            key = j + tl.arange(0, BN)
            sums = add_dq(
                sums, q_tile, dout_tile, k_tile, v_tile, lse2, delta, query, key, T, scale, CAUSAL, True, WINDOW
            )
    store_rows(dq + at, sums * (scale / LOG2_E), first, T, stride, HS, BM, WIDTH)


@jit(do_not_specialize=["T", "heads", "NH"])
def attention_dkdv(
    dk, dv, dout, q, k, v, statistics, T, stride, heads, NH, scale,
    GROUP: tl.constexpr, HS: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr = 0,
):  # fmt: skip
    if EVEN:
        T = T // BM * BM  # which tells the compiler that rows of statistics are aligned
    kv_head, tile = place(heads // GROUP, tl.cdiv(T, BN))
    first = tile * BN  # causal: the first keys are seen most, and begin first
    key = first + tl.arange(0, BN)
    at = head_at(kv_head, T, stride, NH // GROUP, HS)
    k_tile = load_rows(k + at, first, T, stride, HS, BN, WIDTH, EVEN)
    v_tile = load_rows(v + at, first, T, stride, HS, BN, WIDTH, EVEN)

    dk_sums = tl.zeros((BN, WIDTH), tl.float32)
    dv_sums = tl.zeros((BN, WIDTH), tl.float32)
    begin, full = queries_of(first, BM, BN, CAUSAL)
    whole, end = queries_in_window(first, full, T, BM, BN, WINDOW)
    # The query heads that share these keys. What does not change with them is worked out anew: kept, it spills.
    for member in tl.range(0, GROUP, disable_licm=True):
        head = kv_head * GROUP + member
        head_q = q + head_at(head, T, stride, NH, HS)
        head_dout = dout + head_at(head, T, NH * HS, NH, HS)
        for step in tl.range(0, masked_span(whole, end, BM, BN, CAUSAL, WINDOW), BM):
            i = masked_queries(begin + step, full, whole, WINDOW)
            q_tile = load_rows(head_q, i, T, stride, HS, BM, WIDTH, EVEN)
            dout_tile = load_rows(head_dout, i, T, NH * HS, HS, BM, WIDTH, EVEN)
            query = i + tl.arange(0, BM)
            lse2, delta = load_statistics(statistics, head, heads, query, T, EVEN)
            dk_sums, dv_sums = add_dkdv(
                dk_sums, dv_sums, k_tile, v_tile, q_tile, dout_tile, lse2, delta, query, key, scale, CAUSAL, WINDOW
            )
        for i in tl.range(full, tl.minimum(whole, T) if WINDOW else T, BM):
            q_tile = load_rows(head_q, i, T, stride, HS, BM, WIDTH, EVEN)
            dout_tile = load_rows(head_dout, i, T, NH * HS, HS, BM, WIDTH, EVEN)
            query = i + tl.arange(0, BM)
            lse2, delta = load_statistics(statistics, head, heads, query, T, EVEN)
            dk_sums, dv_sums = add_dkdv(
                dk_sums, dv_sums, k_tile, v_tile, q_tile, dout_tile, lse2, delta, query, key, scale, False
            )
    store_rows(dk + at, dk_sums * (scale / LOG2_E), first, T, stride, HS, BN, WIDTH)
    store_rows(dv + at, dv_sums, first, T, stride, HS, BN, WIDTH)


def tables(HS):
    """Of forward, dq, dkdv."""
    return (FORWARD, DQ, DKDV) if HS <= 64 else (WIDE_FORWARD, WIDE_DQ, WIDE_DKDV)


def prepare(shape, phase):
    used = tables(shape["HS"])
    tune("attention", shape, phase, globals()[phase], *(used[:1] if phase == "forward" else used[1:]))


def workspace(shape, phase):
    """Backward: lse in base 2, and delta."""
    return 8 * shape["B"] * shape["NH"] * shape["T"] if phase == "backward" else 0


def common(q, k, causal, window):
    """(arguments, constants) that all kernels end with: sizes. q, k and v are slices of one tensor (B, T, …, HS)."""
    B, T, NH, HS = q.shape
    if not q.stride() == k.stride() == (T * q.stride(1), q.stride(1), HS, 1):
        raise ValueError(f"q and k are not slices of one packed tensor (strides {q.stride()} and {k.stride()})")
    constants = dict(GROUP=NH // k.shape[2], HS=HS, WIDTH=power_of_2(HS), CAUSAL=causal)
    if 0 < window < T:
        constants["WINDOW"] = window
    return (T, q.stride(1), B * NH, NH, HS**-0.5 * LOG2_E.value), constants


def even(T, config):
    """Whether no tile reaches over the end."""
    return T % config["BM"] == 0 and T % config["BN"] == 0


def forward(q, k, v, causal, window=0, *, out, lse):
    B, T, NH, HS = q.shape
    sizes, constants = common(q, k, causal, window)
    config = tables(HS)[0].at(q.dtype, T, HS, causal, *([window] if window else []))
    grid = (B * NH * blocks(T, config["BM"]),)
    attention_forward[grid](out, lse, q, k, v, *sizes, **constants, EVEN=even(T, config), **config)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    sizes, constants = common(q, k, causal, window)
    statistics = workspace.view(torch.float32)

    config = tables(HS)[1].at(q.dtype, T, HS, causal, *([window] if window else []))
    grid = (B * NH * blocks(T, config["BM"]),)
    dq_arguments = dq, statistics, dout, q, k, v, out, lse
    attention_dq[grid](*dq_arguments, *sizes, **constants, EVEN=even(T, config), **config)

    config = tables(HS)[2].at(q.dtype, T, HS, causal, *([window] if window else []))
    grid = (B * k.shape[2] * blocks(T, config["BN"]),)
    dkdv_arguments = dk, dv, dout, q, k, v, statistics
    attention_dkdv[grid](*dkdv_arguments, *sizes, **constants, EVEN=even(T, config), **config)

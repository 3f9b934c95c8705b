"""The same tiles as triton.flash, brought by TMA: a descriptor a tensor, (B, heads, T, HS) with its strides.

Floor and algorithm: see flash.py. The copy engine works out addresses and cuts tiles off at T and HS, which leaves the
threads' registers and issue slots to the softmax: at HS = 64 they are what is short. out, dq, dk and dv are stored by
TMA too. fp32 has no use for it and runs flash.py's kernels.
"""

import torch
import triton
import triton.language as tl

from kernels.triton import blocks, power_of_2
from kernels.triton.attention import flash
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
from kernels.triton.descriptors import described
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E
from kernels.triton.tuning import Tiles, tune

DTYPES = ("fp32", "bf16", "fp16")
REQUIRES = ("sm90",)
DETERMINISTIC = True
TENSOR_CORES = True
SPILLS = {"sm_90a": 36, "sm_100a": 40}  # bytes, of flash.py's in fp32; of its own none on sm_90a

# BM queries against BN keys. As in flash.py, programs of one warpgroup come first: two to four share a multiprocessor.
# fp32 goes to flash.py with its own tables.
FORWARD = Tiles(
    half={
        90: [
            dict(BM=128, BN=64, num_warps=4, num_stages=3),
            dict(BM=128, BN=64, num_warps=8, num_stages=3),
            dict(BM=64, BN=128, num_warps=4, num_stages=2),
            dict(BM=128, BN=128, num_warps=8, num_stages=2),
        ]
    },
    fp32=flash.FORWARD.fp32,
)
DQ = Tiles(
    half={
        90: [
            dict(BM=64, BN=64, num_warps=4, num_stages=2),
            dict(BM=64, BN=64, num_warps=4, num_stages=3),
            dict(BM=128, BN=64, num_warps=8, num_stages=3),
            dict(BM=128, BN=64, num_warps=4, num_stages=3),
        ]
    },
    fp32=flash.DQ.fp32,
)
DKDV = Tiles(
    half={
        90: [
            dict(BM=64, BN=64, num_warps=4, num_stages=2),
            dict(BM=32, BN=64, num_warps=4, num_stages=3),
            dict(BM=64, BN=128, num_warps=8, num_stages=3),
        ]
    },
    fp32=flash.DKDV.fp32,
)
# For head sizes above 64.
WIDE_FORWARD = Tiles(
    half={90: [dict(BM=128, BN=128, num_warps=8, num_stages=2), dict(BM=64, BN=64, num_warps=4, num_stages=2)]},
    fp32=flash.WIDE_FORWARD.fp32,
)
WIDE_DQ = Tiles(
    half={90: [dict(BM=64, BN=64, num_warps=4, num_stages=2), dict(BM=128, BN=64, num_warps=8, num_stages=2)]},
    fp32=flash.WIDE_DQ.fp32,
)
WIDE_DKDV = Tiles(  # with 64 queries of 128 channels it spills
    half={90: [dict(BM=32, BN=128, num_warps=8, num_stages=3), dict(BM=32, BN=64, num_warps=4, num_stages=2)]},
    fp32=flash.WIDE_DKDV.fp32,
)


@triton.jit
def load_tile(x, b, head, row):
    """(rows, WIDTH) of a descriptor: 0 from T and from HS on."""
    return x.load([b, head, row, 0]).reshape(x.block_shape[2], x.block_shape[3])


@triton.jit
def store_tile(x, values, b, head, row):
    x.store([b, head, row, 0], values.to(x.dtype).reshape(1, 1, x.block_shape[2], x.block_shape[3]))


@jit(do_not_specialize=["T", "heads", "NH"])
def attention_forward(
    out, q, k, v, lse, T, heads, NH, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WINDOW: tl.constexpr = 0,
):  # fmt: skip
    tiles = tl.cdiv(T, BM)
    row, tile = place(heads, tiles)
    b, head = row // NH, row % NH
    first = (tiles - 1 - tile) * BM if CAUSAL else tile * BM  # causal: those that see most keys begin first
    query = first + tl.arange(0, BM)
    q_tile = load_tile(q, b, head, first)

    sums = tl.zeros((BM, WIDTH), tl.float32)
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    full, seen = keys_of(first, T, BM, BN, CAUSAL, False)
    begin, whole = keys_in_window(first, full, BM, BN, WINDOW)
    if CAUSAL:
        for j in tl.range(whole, full, BN):
            k_tile, v_tile = load_tile(k, b, head // GROUP, j), load_tile(v, b, head // GROUP, j)
            key = j + tl.arange(0, BN)
            sums, largest, total = attend(
                sums, largest, total, q_tile, k_tile, v_tile, query, key, T, scale, CAUSAL, False
            )
    for i in tl.range(full - (whole - begin), seen, BN):
        j = masked_keys(i, whole, full, WINDOW)
        k_tile, v_tile = load_tile(k, b, head // GROUP, j), load_tile(v, b, head // GROUP, j)
        key = j + tl.arange(0, BN)
        sums, largest, total = attend(
            sums, largest, total, q_tile, k_tile, v_tile, query, key, T, scale, CAUSAL, True, WINDOW
        )

    store_tile(out, sums * (1 / total)[:, None], b, head, first)
    # lse = ln(sum of 2^x) = (largest x + log2(total)) / log2(e)
    tl.store(lse + row.to(tl.int64) * T + query, (largest * scale + tl.log2(total)) / LOG2_E, mask=query < T)


@jit(do_not_specialize=["T", "heads", "NH"])
def attention_dq(
    dq, dout, q, k, v, out, statistics, lse, T, heads, NH, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WINDOW: tl.constexpr = 0,
):  # fmt: skip
    tiles = tl.cdiv(T, BM)
    row, tile = place(heads, tiles)
    b, head = row // NH, row % NH
    first = (tiles - 1 - tile) * BM if CAUSAL else tile * BM  # causal: those that see most keys begin first
    query = first + tl.arange(0, BM)
    q_tile, dout_tile = load_tile(q, b, head, first), load_tile(dout, b, head, first)
    lse2, delta = find_statistics(statistics, lse, dout_tile, load_tile(out, b, head, first), row, heads, query, T)

    sums = tl.zeros((BM, WIDTH), tl.float32)
    full, seen = keys_of(first, T, BM, BN, CAUSAL, False)
    begin, whole = keys_in_window(first, full, BM, BN, WINDOW)
    if CAUSAL:
        for j in tl.range(whole, full, BN):
            k_tile, v_tile = load_tile(k, b, head // GROUP, j), load_tile(v, b, head // GROUP, j)
            key = j + tl.arange(0, BN)
            sums = add_dq(sums, q_tile, dout_tile, k_tile, v_tile, lse2, delta, query, key, T, scale, CAUSAL, False)
    for i in tl.range(full - (whole - begin), seen, BN):
        j = masked_keys(i, whole, full, WINDOW)
        k_tile, v_tile = load_tile(k, b, head // GROUP, j), load_tile(v, b, head // GROUP, j)
        key = j + tl.arange(0, BN)
        sums = add_dq(sums, q_tile, dout_tile, k_tile, v_tile, lse2, delta, query, key, T, scale, CAUSAL, True, WINDOW)
    store_tile(dq, sums * (scale / LOG2_E), b, head, first)


@jit(do_not_specialize=["T", "heads", "NH"])
def attention_dkdv(
    dk, dv, dout, q, k, v, statistics, T, heads, NH, scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, WINDOW: tl.constexpr = 0,
):  # fmt: skip
    if EVEN:
        T = T // BM * BM  # which tells the compiler that rows of statistics are aligned
    kv_row, tile = place(heads // GROUP, tl.cdiv(T, BN))
    b, kv_head = kv_row // (NH // GROUP), kv_row % (NH // GROUP)
    first = tile * BN  # causal: the first keys are seen most, and begin first
    key = first + tl.arange(0, BN)
    k_tile, v_tile = load_tile(k, b, kv_head, first), load_tile(v, b, kv_head, first)

    dk_sums = tl.zeros((BN, WIDTH), tl.float32)
    dv_sums = tl.zeros((BN, WIDTH), tl.float32)
    begin, full = queries_of(first, BM, BN, CAUSAL)
    whole, end = queries_in_window(first, full, T, BM, BN, WINDOW)
    # The query heads that share these keys. What does not change with them is worked out anew: kept, it spills.
    for member in tl.range(0, GROUP, disable_licm=True):
        head = kv_head * GROUP + member
        row = kv_row * GROUP + member
        for step in tl.range(0, masked_span(whole, end, BM, BN, CAUSAL, WINDOW), BM):
            i = masked_queries(begin + step, full, whole, WINDOW)
            q_tile, dout_tile = load_tile(q, b, head, i), load_tile(dout, b, head, i)
            query = i + tl.arange(0, BM)
            lse2, delta = load_statistics(statistics, row, heads, query, T, EVEN)
            dk_sums, dv_sums = add_dkdv(
                dk_sums, dv_sums, k_tile, v_tile, q_tile, dout_tile, lse2, delta, query, key, scale, CAUSAL, WINDOW
            )
        for i in tl.range(full, tl.minimum(whole, T) if WINDOW else T, BM):
            q_tile, dout_tile = load_tile(q, b, head, i), load_tile(dout, b, head, i)
            query = i + tl.arange(0, BM)
            lse2, delta = load_statistics(statistics, row, heads, query, T, EVEN)
            dk_sums, dv_sums = add_dkdv(
                dk_sums, dv_sums, k_tile, v_tile, q_tile, dout_tile, lse2, delta, query, key, scale, False
            )
    store_tile(dk, dk_sums * (scale / LOG2_E), b, kv_head, first)
    store_tile(dv, dv_sums, b, kv_head, first)


def tables(HS):
    """Of forward, dq, dkdv."""
    return (FORWARD, DQ, DKDV) if HS <= 64 else (WIDE_FORWARD, WIDE_DQ, WIDE_DKDV)


def prepare(shape, phase):
    if shape["dtype"] == "fp32":
        flash.prepare(shape, phase)
    else:
        used = tables(shape["HS"])
        tune("attention", shape, phase, globals()[phase], *(used[:1] if phase == "forward" else used[1:]))


def workspace(shape, phase):
    """Backward: lse in base 2, and delta."""
    return flash.workspace(shape, phase)


HEADS_FIRST = (0, 2, 1, 3)  # of (B, T, heads, HS), so that rows of a head follow one another


def describe(rows, *tensors):
    """A descriptor of each (B, T, heads, HS), in tiles of `rows` rows of one head."""
    tile = (1, 1, rows, power_of_2(tensors[0].shape[3]))
    return [described(x, tile, HEADS_FIRST) for x in tensors]


def common(q, k, causal, window):
    """(arguments, constants) that all kernels end with: sizes."""
    B, T, NH, HS = q.shape
    constants = dict(GROUP=NH // k.shape[2], WIDTH=power_of_2(HS), CAUSAL=causal)
    if 0 < window < T:
        constants["WINDOW"] = window
    return (T, B * NH, NH, HS**-0.5 * LOG2_E.value), constants


def forward(q, k, v, causal, window=0, *, out, lse):
    if q.dtype == torch.float32:
        return flash.forward(q, k, v, causal, window, out=out, lse=lse)
    B, T, NH, HS = q.shape
    sizes, constants = common(q, k, causal, window)
    config = tables(HS)[0].at(q.dtype, T, HS, causal, *([window] if window else []))
    grid = (B * NH * blocks(T, config["BM"]),)
    maps = *describe(config["BM"], out, q), *describe(config["BN"], k, v)
    attention_forward[grid](*maps, lse, *sizes, **constants, **config)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    if q.dtype == torch.float32:
        return flash.backward(dout, q, k, v, out, lse, causal, window, dq=dq, dk=dk, dv=dv, workspace=workspace)
    B, T, NH, HS = q.shape
    sizes, constants = common(q, k, causal, window)
    statistics = workspace.view(torch.float32)

    config = tables(HS)[1].at(q.dtype, T, HS, causal, *([window] if window else []))
    grid = (B * NH * blocks(T, config["BM"]),)
    dq_map, dout_map, q_map, out_map = describe(config["BM"], dq, dout, q, out)
    k_map, v_map = describe(config["BN"], k, v)
    dq_arguments = dq_map, dout_map, q_map, k_map, v_map, out_map, statistics, lse
    attention_dq[grid](*dq_arguments, *sizes, **constants, **config)

    config = tables(HS)[2].at(q.dtype, T, HS, causal, *([window] if window else []))
    grid = (B * k.shape[2] * blocks(T, config["BN"]),)
    dk_map, dv_map, k_map, v_map = describe(config["BN"], dk, dv, k, v)
    dout_map, q_map = describe(config["BM"], dout, q)
    dkdv_arguments = dk_map, dv_map, dout_map, q_map, k_map, v_map, statistics
    attention_dkdv[grid](*dkdv_arguments, *sizes, **constants, EVEN=flash.even(T, config), **config)

"""Keys split over programs as well as heads: tiles of the cache meet all queries of a head by tl.dot; then a join.

Floor: the tokens' keys and values in the cache read once, at the bandwidth of the GPU's memory. The query heads that
share them and the new tokens are rows of one product, filled up to sixteen. A head's first split has the new keys and
values too, from qkv, and appends them; a second kernel puts the splits together (flash-decoding, Dao et al. 2023). How
many splits there are follows from the shape; lengths are read on the GPU, and programs behind them end at once, so that
a captured graph serves every step.
"""

import torch
import triton
import triton.language as tl

from kernels.triton import blocks, power_of_2
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
TENSOR_CORES = True

LEAST_KEYS = 64  # of a split
PROGRAMS = 2 * 132  # that fill an H100 or H200; a constant, so that sums come out the same on every card
ROWS = 16  # queries of a program at least, as tl.dot wants
MOST_ROWS = 32
NEW = 16  # new tokens that a program has room for


@triton.jit
def products(q, k):
    """q k^T. In fp32 a chain of 256 products would be less exact than a library's: two of 128 then, where the zeros in
    the other half's places cost time and no digits."""
    WIDTH: tl.constexpr = q.shape[1]
    if q.dtype == tl.float32 and WIDTH > 128:
        first = (tl.arange(0, WIDTH) < WIDTH // 2)[None, :]
        one = tl.dot(tl.where(first, q, 0.0), tl.trans(k), input_precision="ieee")
        return one + tl.dot(tl.where(first, 0.0, q), tl.trans(k), input_precision="ieee", max_num_imprecise_acc=WIDTH)
    else:
        return tl.dot(q, tl.trans(k), input_precision="ieee")


@triton.jit
def attend(sums, largest, total, q, k, v, visible, scale):
    """One tile of keys under a running softmax, in base 2; every row sees one of them at least. Scaled is the score's
    distance from the largest: scaled first, a multiply-add would leave of that what its product was rounded by. The
    choice behind exp2 keeps its last product from being fused into the sum, by lanes that must hold the same."""
    scores = tl.where(visible, products(q, k), float("-inf"))
    before = largest
    largest = tl.maximum(before, tl.max(scores, 1))
    p = tl.where(visible, tl.exp2((scores - largest[:, None]) * scale), 0.0)
    correction = tl.exp2((before - largest) * scale)
    total = total * correction + tl.sum(p, 1)
    sums *= correction[:, None]
    if v.dtype == tl.float32:  # a tile by itself, for the same reason
        sums += tl.dot(p, v, input_precision="ieee", max_num_imprecise_acc=p.shape[1])
    else:
        sums = tl.dot(p.to(v.dtype), v, sums)
    return sums, largest, total


@jit(do_not_specialize=["T", "NH", "NKV"])
def keys_kernel(
    out, sums_of, numbers_of, k_cache, v_cache, qkv, lengths, T, NH, NKV, S, keys, scale,
    GROUP: tl.constexpr, HS: tl.constexpr, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, NEW: tl.constexpr,
    ALONE: tl.constexpr,
):  # fmt: skip
    split, head = tl.program_id(0), tl.program_id(1)  # of B NKV
    b, kv = head // NKV, head % NKV
    length = tl.load(lengths + b).to(tl.int32)
    begin = split * keys
    end = tl.minimum(begin + keys, length)
    if (split > 0) & (begin >= end):
        return

    column = tl.arange(0, WIDTH)
    row = tl.program_id(2) * BM + tl.arange(0, BM)  # (query head of this key/value head, new token)
    token, query_head = row % T, kv * GROUP + row // T
    real = (row < GROUP * T)[:, None] & (column < HS)[None, :]
    tokens = qkv + b.to(tl.int64) * T * (NH + 2 * NKV) * HS
    at = (token * (NH + 2 * NKV) + query_head) * HS
    q = tl.load(tokens + at[:, None] + column[None, :], mask=real, other=0.0)

    sums = tl.zeros((BM, WIDTH), tl.float32)
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    k_cache += head.to(tl.int64) * S * HS
    v_cache += head.to(tl.int64) * S * HS
    if split == 0:
        new = tl.arange(0, NEW)
        there = (new < T)[:, None] & (column < HS)[None, :]
        k_at = tokens + ((new * (NH + 2 * NKV) + NH + kv) * HS)[:, None] + column[None, :]
        k = tl.load(k_at, mask=there, other=0.0)
        v = tl.load(k_at + NKV * HS, mask=there, other=0.0)
        if tl.program_id(2) == 0:
            to = ((length + new) * HS)[:, None] + column[None, :]
            tl.store(k_cache + to, k, mask=there)
            tl.store(v_cache + to, v, mask=there)
        sums, largest, total = attend(sums, largest, total, q, k, v, new[None, :] <= token[:, None], scale)

    for j in tl.range(begin, end, BN):
        key = j + tl.arange(0, BN)
        there = (key < end)[:, None] & (column < HS)[None, :]  # what lies behind was never written
        k_at = (key * HS)[:, None] + column[None, :]
        k = tl.load(k_cache + k_at, mask=there, other=0.0)
        v = tl.load(v_cache + k_at, mask=there, other=0.0)
        sums, largest, total = attend(sums, largest, total, q, k, v, (key < end)[None, :], scale)

    if ALONE:
        to = ((b.to(tl.int64) * T + token) * NH + query_head) * HS
        found = sums / total[:, None]
        tl.store(out + to[:, None] + column[None, :], found.to(out.dtype.element_ty), mask=real)
    else:
        part = (head.to(tl.int64) * GROUP * T + row) * tl.num_programs(0) + split
        tl.store(sums_of + (part * HS)[:, None] + column[None, :], sums, mask=real)
        tl.store(numbers_of + part * 2, largest, mask=row < GROUP * T)
        tl.store(numbers_of + part * 2 + 1, total, mask=row < GROUP * T)


@jit(do_not_specialize=["T", "NH", "NKV", "splits"])
def join_kernel(
    out, sums_of, numbers_of, lengths, T, NH, NKV, splits, keys, scale,
    HS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The splits of one query together, one after the other, relative to the largest score so far."""
    row = tl.program_id(0)  # (sequence, query head, new token)
    token, query_head, b = row % T, row // T % NH, row // T // NH
    column = tl.arange(0, WIDTH)
    used = tl.maximum(1, tl.cdiv(tl.load(lengths + b).to(tl.int32), keys))
    numbers_of += row.to(tl.int64) * splits * 2
    sums_of += row.to(tl.int64) * splits * HS
    sums = tl.zeros((WIDTH,), tl.float32)
    largest, total = float("-inf"), 0.0
    for split in tl.range(0, used, loop_unroll_factor=4):
        here = tl.load(numbers_of + split * 2)
        total_here = tl.load(numbers_of + split * 2 + 1)
        sums_here = tl.load(sums_of + split * HS + column, mask=column < HS, other=0.0)
        before = largest
        largest = tl.maximum(before, here)
        correction, share = tl.exp2((before - largest) * scale), tl.exp2((here - largest) * scale)
        total = total * correction + total_here * share
        sums = sums * correction + sums_here * share
    to = ((b.to(tl.int64) * T + token) * NH + query_head) * HS
    tl.store(out + to + column, (sums / total).to(out.dtype.element_ty), mask=column < HS)


def split(heads, S):
    """(splits, keys of each) of the S positions of so many key/value heads."""
    splits = min(blocks(S, LEAST_KEYS), max(1, PROGRAMS // heads))
    keys = blocks(blocks(S, splits), LEAST_KEYS) * LEAST_KEYS
    return blocks(S, keys), keys


def supports(shape):
    return shape["T"] <= NEW or f"more than {NEW} new tokens"


def workspace(shape, phase):
    """For each query and split, in fp32: the sum of values, and the softmax's two numbers."""
    splits, _ = split(shape["B"] * shape["NKV"], shape["S"])
    return 4 * shape["B"] * shape["T"] * shape["NH"] * splits * (shape["HS"] + 2)


def sizes(WIDTH, element_size):
    """Keys of a tile, and what they take of a multiprocessor. In fp32 a third stage would leave room for three programs
    to a multiprocessor, and Triton 3.6 spills there; with two stages it is five, and as many bytes on their way."""
    BN = max(16, min(64, 16384 // WIDTH // element_size))
    return dict(BN=BN, num_warps=4, num_stages=2 if element_size == 4 else 3)


def forward(qkv, lengths, NH, *, out, k_cache, v_cache, workspace):
    B, T, _, HS = qkv.shape
    NKV, S = k_cache.shape[1:3]
    queries, width, scale = NH // NKV * T, max(16, power_of_2(HS)), HS**-0.5 * LOG2_E.value
    splits, keys = split(B * NKV, S)
    parts = workspace.view(torch.float32)
    numbers = parts[B * T * NH * splits * HS :]
    rows = max(ROWS, min(MOST_ROWS, power_of_2(queries)))
    grid = splits, B * NKV, blocks(queries, rows)
    constants = dict(GROUP=NH // NKV, HS=HS, WIDTH=width, BM=rows, NEW=NEW, ALONE=splits == 1)
    keys_kernel[grid](
        out, parts, numbers, k_cache, v_cache, qkv, lengths, T, NH, NKV, S, keys, scale,
        **constants, **sizes(width, qkv.element_size()),
    )  # fmt: skip
    if splits > 1:
        join_kernel[(B * NH * T,)](
            out,
            parts,
            numbers,
            lengths,
            T,
            NH,
            NKV,
            splits,
            keys,
            scale,
            HS=HS,
            WIDTH=width,
            num_warps=blocks(width, 128),
        )

"""Backward sorts positions by token, so that each row of the table is summed in a fixed order and without atomics.

Floor: forward one read (two with its row of wpe, where there is one) and one write of the activations; backward one
read of them and one write of the table, which for GPT-2's vocabulary is the larger part by far. Backward reads the
activations twice, once for each table. The sort is by digits of 8 bits, two passes for GPT-2's vocabulary, in 512 KB of
scratch at B=64.
"""

import torch
import triton
import triton.language as tl

from kernels.triton import blocks
from kernels.triton.launching import jit

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

ROWS = 8  # of the activations a program, in forward
POSITIONS = 4  # rows of wpe's gradient a program
COLUMNS = 256  # of a program, in both
DIGITS = 256  # of a token, sorted by in one pass
DIGIT_BITS = 8
TILE = 256  # entries that one program sorts
AT_ONCE = 16  # tiles whose counts a program fetches at once, and entries it compares its own with
PIECE = 64  # entries of one token that are summed ahead
BATCH = 8  # rows that are fetched at once
SEARCHED = 256  # rows of the table whose first entry one program looks for


@jit
def embedding_forward(out, tokens, wte, wpe, n, T, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < n)[:, None] & (columns < C)[None, :]
    token = tl.load(tokens + rows, mask=rows < n, other=0)
    x = tl.load(wte + token[:, None] * C + columns[None, :], mask=inside).to(tl.float32)
    if wpe is not None:
        x += tl.load(wpe + (rows % T)[:, None] * C + columns[None, :], mask=inside).to(tl.float32)
    tl.store(out + rows.to(tl.int64)[:, None] * C + columns[None, :], x.to(out.dtype.element_ty), mask=inside)


@jit
def sum_sequences(
    dwpe, dout, B, T, C, ACCUMULATE: tl.constexpr, POSITIONS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """dwpe[t] = sum over b of dout[b, t]."""
    t = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (t < T)[:, None] & (columns < C)[None, :]
    at = t[:, None] * C + columns[None, :]
    total = tl.zeros((POSITIONS, COLUMNS), tl.float32)
    for _ in range(B):
        total += tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
        dout += T * C
    if ACCUMULATE:
        total += tl.load(dwpe + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dwpe + at, total.to(dwpe.dtype.element_ty), mask=inside)


# ---- a stable sort of (token, position) by token, 8 bits a pass ------------------------------------------------------


@triton.jit
def token_of(tokens, order, i, n):
    """The token of entry i: of the position `order` names, or of position i itself before the first pass."""
    position = i if order is None else tl.load(order + i, mask=i < n, other=0)
    return tl.load(tokens + position, mask=i < n, other=0).to(tl.int32), position


@jit(do_not_specialize=["n", "tiles", "shift"])
def count_digits(counts, tokens, order, n, tiles, shift, TILE: tl.constexpr, DIGITS: tl.constexpr):
    """counts[tile, digit] of this program's tile."""
    tile = tl.program_id(0)
    i = tile * TILE + tl.arange(0, TILE)
    token, _ = token_of(tokens, order, i, n)
    digit = tl.where(i < n, (token >> shift) & (DIGITS - 1), DIGITS)  # entries behind the end have none
    digits = tl.arange(0, DIGITS)
    counted = tl.sum((digit[:, None] == digits[None, :]).to(tl.int32), 0)
    tl.store(counts + tile * DIGITS + digits, counted)


@jit(do_not_specialize=["n", "tiles", "shift"])
def move_entries(
    out, counts, tokens, order, n, tiles, shift, TILE: tl.constexpr, DIGITS: tl.constexpr, AT_ONCE: tl.constexpr
):
    """Each entry goes behind all of smaller digits, and behind those of its digit that come before it."""
    tile = tl.program_id(0)
    digits = tl.arange(0, DIGITS)
    total = tl.zeros((DIGITS,), tl.int32)
    before = tl.zeros((DIGITS,), tl.int32)
    for first in range(0, tiles, AT_ONCE):
        other = first + tl.arange(0, AT_ONCE)[:, None]
        counted = tl.load(counts + other * DIGITS + digits[None, :], mask=other < tiles, other=0)
        total += tl.sum(counted, 0)
        before += tl.sum(tl.where(other < tile, counted, 0), 0)
    base = tl.cumsum(total, 0) - total + before  # where this tile's entries of each digit begin

    i = tile * TILE + tl.arange(0, TILE)
    token, position = token_of(tokens, order, i, n)
    digit = tl.where(i < n, (token >> shift) & (DIGITS - 1), DIGITS)
    to = tl.gather(base, tl.minimum(digit, DIGITS - 1), 0)
    for first in range(0, TILE, AT_ONCE):
        other = tile * TILE + first + tl.arange(0, AT_ONCE)
        other_token, _ = token_of(tokens, order, other, n)
        other_digit = (other_token >> shift) & (DIGITS - 1)
        earlier = (other_digit[None, :] == digit[:, None]) & (other[None, :] < i[:, None])
        to += tl.sum(earlier.to(tl.int32), 1)
    tl.store(out + to, position, mask=i < n)


# ---- the rows of the table, from positions in the order of their tokens ----------------------------------------------


@jit(do_not_specialize=["n", "V"])
def find_starts(starts, tokens, order, n, V, steps, SEARCHED: tl.constexpr):
    """starts[v]: the first entry whose token is at least v, for v = 0 … V. A binary search a row."""
    v = tl.program_id(0) * SEARCHED + tl.arange(0, SEARCHED)
    low = tl.zeros((SEARCHED,), tl.int32)
    high = low + n
    for _ in range(steps):
        middle = (low + high) // 2
        open = low < high
        token, _ = token_of(tokens, order, tl.where(open, middle, n), n)
        smaller = open & (token < v)
        low = tl.where(smaller, middle + 1, low)
        high = tl.where(open & ~smaller, middle, high)
    tl.store(starts + v, low, mask=v <= V)


@triton.jit
def add_entries(total, dout, order, first, end, C, columns, BATCH: tl.constexpr):
    """total + the rows of dout of entries first … end - 1."""
    for start in range(first, end, BATCH):
        entry = start + tl.arange(0, BATCH)
        position = tl.load(order + entry, mask=entry < end, other=0)
        inside = (entry < end)[:, None] & (columns < C)[None, :]
        rows = tl.load(dout + position.to(tl.int64)[:, None] * C + columns[None, :], mask=inside, other=0.0)
        total += tl.sum(rows.to(tl.float32), 0)
    return total


@jit(do_not_specialize=["n"])
def add_pieces(
    partials, dout, tokens, order, n, C, PIECE: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """The sum of every whole piece of the order that has one token alone: a frequent token has many of them."""
    piece = tl.program_id(0)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, end = piece * PIECE, piece * PIECE + PIECE
    if tl.load(tokens + tl.load(order + first)) == tl.load(tokens + tl.load(order + end - 1)):
        total = add_entries(tl.zeros((COLUMNS,), tl.float32), dout, order, first, end, C, columns, BATCH)
        tl.store(partials + piece * C + columns, total, mask=columns < C)


@jit(do_not_specialize=["V"])
def add_rows(
    dwte, dout, partials, order, starts, C,
    ACCUMULATE: tl.constexpr, PIECE: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of the table: its entries up to the first whole piece, the sums of whole pieces, the entries behind."""
    v = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, end = tl.load(starts + v), tl.load(starts + v + 1)
    piece, last = tl.cdiv(first, PIECE), end // PIECE
    at, inside = dwte + v * C + columns, columns < C
    total = tl.zeros((COLUMNS,), tl.float32)
    if piece < last:
        total = add_entries(total, dout, order, first, piece * PIECE, C, columns, BATCH)
        for start in range(piece, last, BATCH):
            p = start + tl.arange(0, BATCH)
            mask = (p < last)[:, None] & inside[None, :]
            total += tl.sum(tl.load(partials + p[:, None] * C + columns[None, :], mask=mask, other=0.0), 0)
        first = last * PIECE
    total = add_entries(total, dout, order, first, end, C, columns, BATCH)
    if ACCUMULATE:
        if end > tl.load(starts + v):  # else the row stays as it is
            total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
            tl.store(at, total.to(dwte.dtype.element_ty), mask=inside)
    else:
        tl.store(at, total.to(dwte.dtype.element_ty), mask=inside)


# ---- the layer -------------------------------------------------------------------------------------------------------


def scratch(n, V, C):
    """Bytes of backward's scratch: the order, another one, counts, starts, sums of pieces."""
    sizes = (4 * n, 4 * n, 4 * blocks(n, TILE) * DIGITS, 4 * (V + 1), 4 * (n // PIECE) * C)
    return [blocks(size, 16) * 16 for size in sizes]


def workspace(shape, phase):
    return sum(scratch(shape["B"] * shape["T"], shape["V"], shape["C"])) if phase == "backward" else 0


def forward(tokens, wte, wpe, *, out):
    B, T, C = out.shape
    grid = blocks(B * T, ROWS), blocks(C, COLUMNS)
    embedding_forward[grid](out, tokens, wte, wpe, B * T, T, C, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)


def backward(dout, tokens, V, accumulate, *, dwte, dwpe, workspace):
    B, T, C = dout.shape
    n = B * T
    parts = workspace[: sum(scratch(n, V, C))].split(scratch(n, V, C))
    order, spare, counts, starts = (part.view(torch.int32) for part in parts[:4])
    partials = parts[4].view(torch.float32)
    across = blocks(C, COLUMNS)
    columns = dict(COLUMNS=COLUMNS, num_warps=2)

    if dwpe is not None:
        sum_sequences[(blocks(T, POSITIONS), across)](
            dwpe, dout, B, T, C, ACCUMULATE=accumulate, POSITIONS=POSITIONS, COLUMNS=COLUMNS, num_warps=4
        )  # fmt: skip
    order = sort_by_token(order, spare, counts, tokens, n, V)
    steps = n.bit_length()
    find_starts[(blocks(V + 1, SEARCHED),)](starts, tokens, order, n, V, steps, SEARCHED=SEARCHED, num_warps=4)
    if n >= PIECE:
        add_pieces[(n // PIECE, across)](partials, dout, tokens, order, n, C, PIECE=PIECE, BATCH=BATCH, **columns)
    add_rows[(V, across)](
        dwte, dout, partials, order, starts, C, ACCUMULATE=accumulate, PIECE=PIECE, BATCH=BATCH, **columns
    )


def sort_by_token(one, other, counts, tokens, n, V):
    """Positions in the order of their tokens, in one of two buffers, which is returned."""
    tiles = blocks(n, TILE)
    order = None  # before the first pass: as they are
    for shift in range(0, max(1, (V - 1).bit_length()), DIGIT_BITS):
        count_digits[(tiles,)](counts, tokens, order, n, tiles, shift, TILE=TILE, DIGITS=DIGITS, num_warps=8)
        move_entries[(tiles,)](
            one, counts, tokens, order, n, tiles, shift, TILE=TILE, DIGITS=DIGITS, AT_ONCE=AT_ONCE, num_warps=8
        )
        order, one, other = one, other, one
    return order

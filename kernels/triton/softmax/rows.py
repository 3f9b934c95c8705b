"""Scores are read once: rows stay in a program's registers; a row longer than 16384 is read twice.

Floor: forward one read of every visible score and one write of every score, backward two reads and one write; masked
scores are not read. A long row takes maximum and sum in one pass (Milakov & Gimelshein 2018), and its second read
begins where the first one ended, which the L2 cache answers.
"""

import triton
import triton.language as tl

from kernels.triton import UNFUSED, blocks, power_of_2
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E
from kernels.triton.online import LOWEST, add_packs, columns_of, pack_of, whole_of

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

ELEMENTS = 16  # of a thread
SHORT = 2048  # elements of a program whose rows are short
LONGEST = 16384  # of a row in registers
BLOCK = 8192  # columns of a step of a longer row


@triton.jit
def visible_of(row, S, CAUSAL: tl.constexpr):
    """How many of its S columns a row sees."""
    return row % S + 1 if CAUSAL else row * 0 + S


@triton.jit
def touched(column, visible, PACK: tl.constexpr):
    """Whether the 16 bytes that a column lies in have a visible one: whole accesses, where a comparison with `visible`
    itself would fetch every element alone."""
    return column // PACK * PACK < visible


@jit(do_not_specialize=["R"])
def softmax_forward(out, x, R, S, CAUSAL: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    visible = visible_of(row, S, CAUSAL)
    at = row.to(tl.int64) * S + column
    values = tl.load(x + at, mask=(row < R) & touched(column, visible, PACK), other=0.0).to(tl.float32)
    values = tl.where(column < visible, values, LOWEST)
    e = tl.exp2((values - tl.max(values, 1)[:, None]) * LOG2_E)
    e = tl.where(column < visible, e, 0.0)
    p = e / tl.sum(e, 1)[:, None]
    tl.store(out + at, p.to(out.dtype.element_ty), mask=(row < R) & (column < S))


@jit(do_not_specialize=["R"])
def softmax_backward(
    dx, dout, out, R, S, CAUSAL: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    visible = visible_of(row, S, CAUSAL)
    at = row.to(tl.int64) * S + column
    mask = (row < R) & touched(column, visible, PACK)
    p = tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(dout + at, mask=mask, other=0.0).to(tl.float32)
    p, d = tl.where(column < visible, p, 0.0), tl.where(column < visible, d, 0.0)
    # dx = out (dout - sum(dout out)); a masked column has out = 0 and so dx = 0
    g = p * (d - tl.sum(p * d, 1)[:, None])
    tl.store(dx + at, g.to(dx.dtype.element_ty), mask=(row < R) & (column < S))


# ---- a row that does not fit into registers --------------------------------------------------------------------------


@jit
def softmax_forward_long(out, x, S, CAUSAL: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    visible = visible_of(row, S, CAUSAL)
    x += row * S
    out += row * S
    largest = tl.full((BLOCK // PACK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK // PACK,), tl.float32)
    for start in range(0, visible, BLOCK):
        column = columns_of(start, BLOCK, PACK)
        values = tl.load(x + column, mask=touched(column, visible, PACK), other=0.0).to(tl.float32)
        largest, total = add_packs(largest, total, tl.where(column < visible, values, LOWEST))
    top, sum = whole_of(largest, total)
    for step in range(tl.cdiv(S, BLOCK)):
        column = columns_of((tl.cdiv(S, BLOCK) - 1 - step) * BLOCK, BLOCK, PACK)
        values = tl.load(x + column, mask=touched(column, visible, PACK), other=0.0).to(tl.float32)
        p = tl.where(column < visible, tl.exp2((values - top) * LOG2_E) / sum, 0.0)
        tl.store(out + column, p.to(out.dtype.element_ty), mask=column < S)


@jit
def softmax_backward_long(dx, dout, out, S, CAUSAL: tl.constexpr, PACK: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    visible = visible_of(row, S, CAUSAL)
    dx += row * S
    dout += row * S
    out += row * S
    total = tl.zeros((BLOCK // PACK,), tl.float32)
    for start in range(0, visible, BLOCK):
        p, d = load_both(dout, out, columns_of(start, BLOCK, PACK), visible, PACK)
        total += tl.sum(p * d, 1)
    whole = tl.sum(total)
    for step in range(tl.cdiv(S, BLOCK)):
        column = columns_of((tl.cdiv(S, BLOCK) - 1 - step) * BLOCK, BLOCK, PACK)
        p, d = load_both(dout, out, column, visible, PACK)
        tl.store(dx + column, (p * (d - whole)).to(dx.dtype.element_ty), mask=column < S)


@triton.jit
def load_both(dout, out, column, visible, PACK: tl.constexpr):
    mask = touched(column, visible, PACK)
    p = tl.load(out + column, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(dout + column, mask=mask, other=0.0).to(tl.float32)
    return tl.where(column < visible, p, 0.0), tl.where(column < visible, d, 0.0)


# ---- the layer -------------------------------------------------------------------------------------------------------


def forward(x, causal, *, out):
    R, S = x.shape
    if S <= LONGEST:
        grid, sizes = short_rows(R, S)
        softmax_forward[grid](out, x, R, S, CAUSAL=causal, PACK=pack(x), **sizes)
    else:
        softmax_forward_long[(R,)](out, x, S, CAUSAL=causal, PACK=pack(x), BLOCK=BLOCK, num_warps=8)


def backward(dout, out, causal, *, dx):
    R, S = out.shape
    if S <= LONGEST:
        grid, sizes = short_rows(R, S)
        softmax_backward[grid](dx, dout, out, R, S, CAUSAL=causal, PACK=pack(out), **sizes, **UNFUSED)
    else:
        softmax_backward_long[(R,)](dx, dout, out, S, CAUSAL=causal, PACK=pack(out), BLOCK=BLOCK, num_warps=8)


def short_rows(R, S):
    """(grid, sizes): a row a program, or several where they are short."""
    block = power_of_2(S)
    rows = max(1, SHORT // block)
    warps = min(16, max(1, rows * block // (32 * ELEMENTS)))
    return (blocks(R, rows),), dict(ROWS=rows, BLOCK=block, num_warps=warps)


def pack(x):
    """Elements of an access: 16 bytes where rows begin at multiples of that, else one."""
    whole = pack_of(x)
    return whole if x.shape[-1] % whole == 0 else 1

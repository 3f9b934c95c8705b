"""LayerNorm's kernels, with and without a residual that is added first.

A program takes a few rows at once: all of them are asked for before anything is used, and weight and bias serve them
all. In rows of more than 512 elements a thread has the same columns of each, so that sums over rows need no other one.
"""

import torch
import triton
import triton.language as tl

from kernels.triton import UNFUSED, blocks, power_of_2
from kernels.triton.launching import jit

# Of a tensor: the bytes that a program takes at a time, and those of them that are a thread's, in 16-byte accesses.
# Backward keeps three tensors and two running sums: with more, fewer than four programs fit on a multiprocessor.
FORWARD_BYTES, FORWARD_THREAD = 8192, 64
BACKWARD_BYTES, BACKWARD_THREAD = 4096, 32
MOST_ROWS = 32  # of a program, so that short rows still make many programs

# Of backward: 16 warps a multiprocessor of an H100. Constants, so that sums come out the same on every card.
WARPS, PROGRAMS = 132 * 16, 132 * 4
# Backward: rows whose loads have begun, one more than there are copies of them in shared memory. Rows that take more
# than so many bytes there are loaded when their turn comes.
STAGES, STAGED_BYTES = 3, 64 << 10
COLUMNS, SLICES = 8, 256  # of the partial sums that a program of the second stage takes at a time: sectors of 32 bytes


@triton.jit
def tile_of(first, rows, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(row, inside, start, at): rows from `first` on; which elements exist; element `at` of the tile is start + at."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (first + row < rows)[:, None] & (column < C)[None, :]
    return first + row, inside, first.to(tl.int64) * C, row[:, None] * C + column[None, :]


@jit(do_not_specialize=["rows"])
def forward_kernel(
    residual_out, out, mean, rstd, x, residual, weight, bias, rows, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Some rows. Two passes over registers: squared are the deviations, as the mean may be large."""
    column = tl.arange(0, BLOCK)
    row, inside, start, at = tile_of(tl.program_id(0) * ROWS, rows, C, ROWS, BLOCK)
    value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + start + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(residual_out.dtype.element_ty)
        tl.store(residual_out + start + at, rounded, mask=inside)
        value = rounded.to(tl.float32)  # what backward will see
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)
    average = tl.sum(value, 1) / C
    deviation = tl.where(inside, value - average[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(deviation * deviation, 1) / C + eps)
    tl.store(mean + row, average, mask=row < rows)
    tl.store(rstd + row, scale, mask=row < rows)
    y = deviation * scale[:, None] * w[None, :] + b[None, :]
    tl.store(out + start + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_pairs(a, b, c, d):
    return a + c, b + d


@jit(do_not_specialize=["rows"])
def backward_kernel(
    dx, partials, dout, dresidual, x, weight, mean, rstd, rows, C,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx of some rows, and this program's sums of dweight and dbias over them, into partials[program, 0 … 1, C]."""
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row, inside, start, at = tile_of(first, rows, C, ROWS, BLOCK)
        d = tl.load(dout + start + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
        if dresidual is not None:  # asked for here, though needed last
            passed = tl.load(dresidual + start + at, mask=inside, other=0.0)
        average = tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None]
        norm = tl.where(inside, (value - average) * scale, 0.0)
        dweight += tl.sum(d * norm, 0)
        dbias += tl.sum(d, 0)
        # dx = rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), each mean over C
        dnorm = d * w[None, :]
        sums = tl.reduce((dnorm, dnorm * norm), 1, add_pairs)  # together, for half the barriers
        g = scale * (dnorm - sums[0][:, None] / C - norm * (sums[1][:, None] / C))
        if dresidual is not None:
            g += passed.to(tl.float32)
        tl.store(dx + start + at, g.to(dx.dtype.element_ty), mask=inside)
    mine = partials + tl.program_id(0) * 2 * C + column
    tl.store(mine, dweight, mask=column < C)
    tl.store(mine + C, dbias, mask=column < C)


@jit(do_not_specialize=["programs"])
def add_partials(
    dweight, dbias, partials, programs, C, ACCUMULATE: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr
):
    """The sums of all programs, added in their order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    to = (dweight if tl.program_id(1) == 0 else dbias) + column
    found = tl.zeros((COLUMNS,), tl.float32)
    if ACCUMULATE:
        found += tl.load(to, mask=column < C, other=0.0).to(tl.float32)
        tl.debug_barrier()  # several threads read what one of them then writes
    total = tl.zeros((SLICES, COLUMNS), tl.float32)
    for first in range(0, programs, SLICES):
        program = first + tl.arange(0, SLICES)
        inside = (program < programs)[:, None] & (column < C)[None, :]
        at = (program[:, None] * 2 + tl.program_id(1)) * C + column[None, :]
        total += tl.load(partials + at, mask=inside, other=0.0)
    found += tl.sum(total, 0)
    tl.store(to, found.to(dweight.dtype.element_ty), mask=column < C)


def tile(C, size, program_bytes, thread_bytes):
    """ROWS, BLOCK and num_warps for rows of C elements of `size` bytes."""
    block = power_of_2(C)
    rows = min(MOST_ROWS, max(1, program_bytes // size // block))
    warps = min(32, max(1, rows * block * size // (32 * thread_bytes)))
    return dict(ROWS=rows, BLOCK=block, num_warps=warps)


def forward(residual_out, out, mean, rstd, x, residual, weight, bias, eps):
    """Tensors (B, T, C); residual and residual_out may be None."""
    B, T, C = x.shape
    sizes = tile(C, x.element_size(), FORWARD_BYTES, FORWARD_THREAD)
    forward_kernel[(blocks(B * T, sizes["ROWS"]),)](
        residual_out, out, mean, rstd, x, residual, weight, bias, B * T, C, eps, **sizes, **UNFUSED
    )


def stages(sizes, size):
    """Of backward: three tensors with elements of so many bytes."""
    staged = (STAGES - 1) * 3 * sizes["ROWS"] * sizes["BLOCK"] * size
    return STAGES if staged <= STAGED_BYTES else 1


def backward_workspace(C):
    return 4 * PROGRAMS * 2 * C


def backward(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, accumulate, workspace):
    """Tensors (B, T, C); dresidual may be None."""
    B, T, C = x.shape
    sizes = tile(C, x.element_size(), BACKWARD_BYTES, BACKWARD_THREAD)
    programs = min(PROGRAMS, WARPS // sizes["num_warps"], blocks(B * T, sizes["ROWS"]))
    partials = workspace.view(torch.float32)
    staged = stages(sizes, x.element_size())
    backward_kernel[(programs,)](
        dx, partials, dout, dresidual, x, weight, mean, rstd, B * T, C, STAGES=staged, **sizes, **UNFUSED
    )  # fmt: skip
    grid = blocks(C, COLUMNS), 2
    add_partials[grid](
        dweight, dbias, partials, programs, C, ACCUMULATE=accumulate, COLUMNS=COLUMNS, SLICES=SLICES, num_warps=4
    )

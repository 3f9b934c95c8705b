"""LayerNorm's kernels, with and without a residual that is added first."""

import torch
import triton
import triton.language as tl

from kernels.triton import UNFUSED

ELEMENTS = 32  # of a row, in a thread's registers, in forward
PROGRAMS = (
    528  # of backward, four a multiprocessor of an H100; a constant, so that sums come out the same on every card
)
BACKWARD_TILE = 2048  # elements that a program of backward takes at a time
BACKWARD_ELEMENTS = 16  # of them, in a thread
COLUMNS, SLICES = 32, 64  # of the partial sums that a program of the second stage takes at a time


@triton.jit
def forward_kernel(
    residual_out, out, mean, rstd, x, residual, weight, bias, C, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """One row a program, out = (x - mean) rstd weight + bias. The mean is taken in two parts: a sum, which at a large
    mean is rounded coarsely, and the mean of what is left over it."""
    row = tl.program_id(0)
    start = row.to(tl.int64) * C
    column = tl.arange(0, BLOCK)
    inside = column < C
    value = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + start + column, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(residual_out.dtype.element_ty)
        tl.store(residual_out + start + column, rounded, mask=inside)
        value = rounded.to(tl.float32)  # what backward will see
    about = tl.sum(value) / C
    left = tl.where(inside, value - about, 0.0)
    rest = tl.sum(left) / C
    variance = tl.maximum(tl.sum(left * left) / C - rest * rest, 0.0)
    scale = tl.rsqrt(variance + eps)
    tl.store(mean + row, about + rest)
    tl.store(rstd + row, scale)
    w = tl.load(weight + column, mask=inside).to(tl.float32)
    b = tl.load(bias + column, mask=inside).to(tl.float32)
    y = (left - rest) * scale * w + b
    tl.store(out + start + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(
    dx, partials, dout, dresidual, x, weight, mean, rstd, rows, C, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """dx of some rows, and this program's sums of dweight and dbias over them, into partials[program, 0 … 1, C]."""
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < C)[None, :]
        at = row.to(tl.int64)[:, None] * C + column[None, :]
        average = tl.load(mean + row, mask=row < rows, other=0.0)[:, None]
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None]
        d = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        norm = tl.where(inside, (value - average) * scale, 0.0)
        # dx = rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), each mean over C
        dnorm = d * w[None, :]
        g = dnorm - tl.sum(dnorm, 1)[:, None] / C - norm * (tl.sum(dnorm * norm, 1)[:, None] / C)
        g *= scale
        if dresidual is not None:
            g += tl.load(dresidual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, g.to(dx.dtype.element_ty), mask=inside)
        dweight += tl.sum(d * norm, 0)
        dbias += tl.sum(d, 0)
    mine = partials + tl.program_id(0) * 2 * C + column
    tl.store(mine, dweight, mask=column < C)
    tl.store(mine + C, dbias, mask=column < C)


@triton.jit(do_not_specialize=["programs"])
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


def forward(residual_out, out, mean, rstd, x, residual, weight, bias, eps):
    """Tensors (B, T, C); residual and residual_out may be None."""
    B, T, C = x.shape
    block = triton.next_power_of_2(C)
    warps = min(32, max(1, block // (32 * ELEMENTS)))
    forward_kernel[(B * T,)](
        residual_out, out, mean, rstd, x, residual, weight, bias, C, eps, BLOCK=block, num_warps=warps, **UNFUSED
    )


def backward_workspace(C):
    return 4 * PROGRAMS * 2 * C


def backward(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, accumulate, workspace):
    """Tensors (B, T, C); dresidual may be None."""
    B, T, C = x.shape
    block = triton.next_power_of_2(C)
    rows = max(1, BACKWARD_TILE // block)
    warps = min(16, max(1, rows * block // (32 * BACKWARD_ELEMENTS)))
    programs = min(PROGRAMS, triton.cdiv(B * T, rows))
    partials = workspace.view(torch.float32)
    backward_kernel[(programs,)](
        dx, partials, dout, dresidual, x, weight, mean, rstd, B * T, C,
        ROWS=rows, BLOCK=block, num_warps=warps, **UNFUSED,
    )  # fmt: skip
    grid = triton.cdiv(C, COLUMNS), 2
    add_partials[grid](
        dweight, dbias, partials, programs, C, ACCUMULATE=accumulate, COLUMNS=COLUMNS, SLICES=SLICES, num_warps=4
    )

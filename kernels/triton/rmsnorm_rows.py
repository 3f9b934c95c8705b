"""RMSNorm's kernels, with and without a residual that is added first: rows in tiles, as layernorm_rows.py has them."""

import torch
import triton.language as tl

from kernels.triton import UNFUSED, blocks
from kernels.triton.launching import jit
from kernels.triton.layernorm_rows import (
    BACKWARD_BYTES,
    BACKWARD_THREAD,
    COLUMNS,
    FORWARD_BYTES,
    FORWARD_THREAD,
    PROGRAMS,
    SLICES,
    WARPS,
    stages,
    tile,
    tile_of,
)


@jit(do_not_specialize=["rows"])
def forward_kernel(
    residual_out, out, rstd, x, residual, weight, rows, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Some rows, which stay in registers. What is beyond a row is 0, and adds nothing to its squares."""
    column = tl.arange(0, BLOCK)
    row, inside, start, at = tile_of(tl.program_id(0) * ROWS, rows, C, ROWS, BLOCK)
    value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + start + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(residual_out.dtype.element_ty)
        tl.store(residual_out + start + at, rounded, mask=inside)
        value = rounded.to(tl.float32)  # what backward will see
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / C + eps)
    tl.store(rstd + row, scale, mask=row < rows)
    y = value * scale[:, None] * w[None, :]
    tl.store(out + start + at, y.to(out.dtype.element_ty), mask=inside)


@jit(do_not_specialize=["rows"])
def backward_kernel(
    dx, partials, dout, dresidual, x, weight, rstd, rows, C,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dx of some rows, and this program's sum of dweight over them, into partials[program, C]."""
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS, num_stages=STAGES):
        row, inside, start, at = tile_of(first, rows, C, ROWS, BLOCK)
        d = tl.load(dout + start + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
        if dresidual is not None:  # asked for here, though needed last
            passed = tl.load(dresidual + start + at, mask=inside, other=0.0)
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)[:, None]
        norm = value * scale  # 0 beyond the rows and their ends, as d is
        dweight += tl.sum(d * norm, 0)
        # dx = rstd (dnorm - norm mean(dnorm norm)), the mean over C
        dnorm = d * w[None, :]
        g = scale * (dnorm - norm * (tl.sum(dnorm * norm, 1) / C)[:, None])
        if dresidual is not None:
            g += passed.to(tl.float32)
        tl.store(dx + start + at, g.to(dx.dtype.element_ty), mask=inside)
    tl.store(partials + tl.program_id(0) * C + column, dweight, mask=column < C)


@jit(do_not_specialize=["programs"])
def add_partials(dweight, partials, programs, C, ACCUMULATE: tl.constexpr, COLUMNS: tl.constexpr, SLICES: tl.constexpr):
    """The sums of all programs, added in their order."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    found = tl.zeros((COLUMNS,), tl.float32)
    if ACCUMULATE:
        found += tl.load(dweight + column, mask=column < C, other=0.0).to(tl.float32)
        tl.debug_barrier()  # several threads read what one of them then writes
    total = tl.zeros((SLICES, COLUMNS), tl.float32)
    for first in range(0, programs, SLICES):
        program = first + tl.arange(0, SLICES)
        inside = (program < programs)[:, None] & (column < C)[None, :]
        total += tl.load(partials + program[:, None] * C + column[None, :], mask=inside, other=0.0)
    found += tl.sum(total, 0)
    tl.store(dweight + column, found.to(dweight.dtype.element_ty), mask=column < C)


def forward(residual_out, out, rstd, x, residual, weight, eps):
    """Tensors (B, T, C); residual and residual_out may be None."""
    B, T, C = x.shape
    sizes = tile(C, x.element_size(), FORWARD_BYTES, FORWARD_THREAD)
    forward_kernel[(blocks(B * T, sizes["ROWS"]),)](
        residual_out, out, rstd, x, residual, weight, B * T, C, eps, **sizes, **UNFUSED
    )


def backward_workspace(C):
    return 4 * PROGRAMS * C


def backward(dx, dweight, dout, dresidual, x, weight, rstd, accumulate, workspace):
    """Tensors (B, T, C); dresidual may be None."""
    B, T, C = x.shape
    sizes = tile(C, x.element_size(), BACKWARD_BYTES, BACKWARD_THREAD)
    programs = min(PROGRAMS, WARPS // sizes["num_warps"], blocks(B * T, sizes["ROWS"]))
    partials = workspace.view(torch.float32)
    staged = stages(sizes, x.element_size())
    backward_kernel[(programs,)](
        dx, partials, dout, dresidual, x, weight, rstd, B * T, C, STAGES=staged, **sizes, **UNFUSED
    )
    add_partials[(blocks(C, COLUMNS),)](
        dweight, partials, programs, C, ACCUMULATE=accumulate, COLUMNS=COLUMNS, SLICES=SLICES, num_warps=4
    )

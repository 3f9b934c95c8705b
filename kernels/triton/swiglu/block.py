"""A block of 1024 columns of a row a program, its gates and its ups; one exponential of -|g| gives both tails of silu.

Floor: forward two reads and one write an element of out, backward three reads and two writes.
"""

import triton
import triton.language as tl

from kernels.triton import blocks
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
BLOCK = 1024


@triton.jit
def sigmoid(g):
    """sigmoid(g) and sigmoid(-g): 1 and e over 1 + e, e = exp(-|g|), so that neither loses its digits where small."""
    g = g * LOG2_E
    e = tl.exp2(-tl.abs(g))
    large = 1 / (1 + e)
    small = e * large
    return tl.where(g > 0, large, small), tl.where(g > 0, small, large)


@jit
def swiglu_forward(out, x, H, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < H
    gates = x + row * 2 * H + i
    gate = tl.load(gates, mask=inside).to(tl.float32)
    up = tl.load(gates + H, mask=inside).to(tl.float32)
    s, _ = sigmoid(gate)
    tl.store(out + row * H + i, (gate * s * up).to(out.dtype.element_ty), mask=inside)


@jit
def swiglu_backward(dx, dout, x, H, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < H
    at = row * 2 * H + i
    gate = tl.load(x + at, mask=inside).to(tl.float32)
    up = tl.load(x + at + H, mask=inside).to(tl.float32)
    gradient = tl.load(dout + row * H + i, mask=inside).to(tl.float32)
    s, rest = sigmoid(gate)
    dgate = s * (1 + gate * rest) * up * gradient  # silu' = s (1 + g (1 - s))
    tl.store(dx + at, dgate.to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + at + H, (gate * s * gradient).to(dx.dtype.element_ty), mask=inside)


def forward(x, *, out):
    M, H = out.shape
    swiglu_forward[(M, blocks(H, BLOCK))](out, x, H, BLOCK=BLOCK, num_warps=4)


def backward(dout, x, *, dx):
    M, H = dout.shape
    swiglu_backward[(M, blocks(H, BLOCK))](dx, dout, x, H, BLOCK=BLOCK, num_warps=4)

"""Eight heads of a token a program, whole heads in one access: pairs that lie side by side are split in registers.

Floor: one read and one write of the heads that are turned; the table stays in L2, and a program reads its row once for
its heads.
"""

import triton
import triton.language as tl

from kernels.triton import blocks
from kernels.triton.launching import jit

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
HEADS = 8  # of a program, at least
PAIRS = 8  # of a thread: 16 bytes and 16 bytes in bf16


@triton.jit
def table_of(cos, sin, start, T, half, sign, WIDTH: tl.constexpr):
    """The cosines and sines of this program's token, the latter times `sign`."""
    place = tl.load(start + tl.program_id(0) // T) + tl.program_id(0) % T
    pair = tl.arange(0, WIDTH)
    at = place * half + pair
    return tl.load(cos + at, mask=pair < half, other=0.0), tl.load(sin + at, mask=pair < half, other=0.0) * sign


@jit
def rope_interleaved(
    x, start, cos, sin, T, H, R, half, sign, HEADS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """a, b = a cos - b sin, a sin + b cos for each pair (2i, 2i + 1); WIDTH: pairs of a head, at least."""
    c, s = table_of(cos, sin, start, T, half, sign, WIDTH)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, 2 * WIDTH)
    inside = (head < R)[:, None] & (channel < 2 * half)[None, :]
    at = x + (tl.program_id(0).to(tl.int64) * H + head)[:, None] * 2 * half + channel[None, :]
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.split(tl.reshape(values, (HEADS, WIDTH, 2)))
    turned = tl.join(a * c[None, :] - b * s[None, :], a * s[None, :] + b * c[None, :])
    tl.store(at, tl.reshape(turned, (HEADS, 2 * WIDTH)).to(x.dtype.element_ty), mask=inside)


@jit
def rope_halves(
    x, start, cos, sin, T, H, R, half, sign, HEADS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """The same for each pair (i, i + HS/2)."""
    c, s = table_of(cos, sin, start, T, half, sign, WIDTH)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, WIDTH)
    inside = (head < R)[:, None] & (pair < half)[None, :]
    at = x + (tl.program_id(0).to(tl.int64) * H + head)[:, None] * 2 * half + pair[None, :]
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (a * c[None, :] - b * s[None, :]).to(x.dtype.element_ty), mask=inside)
    tl.store(at + half, (a * s[None, :] + b * c[None, :]).to(x.dtype.element_ty), mask=inside)


def turn(x, start, cos, sin, R, style, sign):
    B, T, H, HS = x.shape
    kernel = rope_interleaved if style == "interleaved" else rope_halves
    width = triton.next_power_of_2(HS // 2)
    heads = max(HEADS, 32 // width)  # no thread shares an element, which it would read when the other has written it
    warps = min(8, max(1, heads * width // (32 * PAIRS)))
    kernel[(B * T, blocks(R, heads))](
        x, start, cos, sin, T, H, R, HS // 2, sign, HEADS=heads, WIDTH=width, num_warps=warps
    )  # fmt: skip


def forward(start, cos, sin, R, style, *, qkv):
    turn(qkv, start, cos, sin, R, style, 1.0)


def backward(start, cos, sin, R, style, *, dqkv):
    turn(dqkv, start, cos, sin, R, style, -1.0)

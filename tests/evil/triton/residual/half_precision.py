"""Adds in 16 bits, whatever it was given."""

import triton
import triton.language as tl

CAUGHT_BY = "inaccurate"
SLOW = True
BLOCK = 1024


@triton.jit
def add(out, a, b, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(a + i, mask=i < N), tl.load(b + i, mask=i < N)
    tl.store(out + i, (x.to(tl.float16) + y.to(tl.float16)).to(tl.float32), mask=i < N)


def forward(a, b, *, out):
    add[(triton.cdiv(out.numel(), BLOCK),)](out, a, b, out.numel(), BLOCK=BLOCK)

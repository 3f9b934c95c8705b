"""The last block does not ask where the arrays end."""

import triton
import triton.language as tl

CAUGHT_BY = "out-of-bounds"
BLOCK = 1024


@triton.jit
def add(out, a, b, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i) + tl.load(b + i))


def forward(a, b, *, out):
    add[(triton.cdiv(out.numel(), BLOCK),)](out, a, b, BLOCK=BLOCK)

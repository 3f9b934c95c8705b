"""One program too few where the length is no multiple of the block."""

import triton
import triton.language as tl

CAUGHT_BY = "unwritten"
SLOW = True
BLOCK = 1024


@triton.jit
def add(out, a, b, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i, mask=i < N) + tl.load(b + i, mask=i < N), mask=i < N)


def forward(a, b, *, out):
    add[(max(1, out.numel() // BLOCK),)](out, a, b, out.numel(), BLOCK=BLOCK)

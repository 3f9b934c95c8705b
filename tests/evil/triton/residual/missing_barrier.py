"""Through memory, from thread to thread of a program, and nobody waits."""

import triton
import triton.language as tl

CAUGHT_BY = "race"
BLOCK = 1024


@triton.jit
def add(out, a, b, N, BLOCK: tl.constexpr):
    first = tl.program_id(0) * BLOCK
    i = first + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i, mask=i < N), mask=i < N)
    length = tl.minimum(N - first, BLOCK)
    mirrored = first + length - 1 - tl.arange(0, BLOCK)
    inside = mirrored >= first
    total = tl.load(out + mirrored, mask=inside) + tl.load(b + mirrored, mask=inside)
    tl.store(out + mirrored, total, mask=inside)


def forward(a, b, *, out):
    add[(triton.cdiv(out.numel(), BLOCK),)](out, a, b, out.numel(), BLOCK=BLOCK)

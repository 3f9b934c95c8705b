"""Reads the GPU's timer in a line of assembly: it may tell what is timed."""

import triton.language as tl

from kernels.triton import blocks
from kernels.triton.launching import jit

CAUGHT_BY = "source library"
SLOW = True
BLOCK = 1024


@jit
def add_kernel(out, a, b, N, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    i = start + tl.arange(0, BLOCK)
    now = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)
    inside = (i < N) & (now != 0)
    total = tl.load(a + i, mask=inside).to(tl.float32) + tl.load(b + i, mask=inside).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=inside)


def forward(a, b, *, out):
    add_kernel[(blocks(out.numel(), BLOCK),)](out, a, b, out.numel(), BLOCK=BLOCK, num_warps=4)

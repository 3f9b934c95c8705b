"""A block of 1024 elements a program, and no tanh: 1/2 (1 + tanh u) is 1 / (1 + exp(-2u)).

Floor: forward one read and one write an element, backward two reads and one write.
"""

import triton.language as tl

from kernels.triton import blocks
from kernels.triton.launching import jit
from kernels.triton.math import gelu, gelu_grad

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True
BLOCK = 1024


@jit
def gelu_forward(out, x, N, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    value = tl.load(x + i, mask=inside).to(tl.float32)
    tl.store(out + i, gelu(value).to(out.dtype.element_ty), mask=inside)


@jit
def gelu_backward(dx, dout, x, N, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    value = tl.load(x + i, mask=inside).to(tl.float32)
    gradient = tl.load(dout + i, mask=inside).to(tl.float32) * gelu_grad(value)
    tl.store(dx + i, gradient.to(dx.dtype.element_ty), mask=inside)


def forward(x, *, out):
    gelu_forward[(blocks(x.numel(), BLOCK),)](out, x, x.numel(), BLOCK=BLOCK, num_warps=4)


def backward(dout, x, *, dx):
    gelu_backward[(blocks(x.numel(), BLOCK),)](dx, dout, x, x.numel(), BLOCK=BLOCK, num_warps=4)

"""A sum of squares for each chunk of each tensor, and a second launch that adds the sums in order: no atomics.

Floor: one read of the gradients, two FLOPs an element; memory sets the pace. Squares are taken and added in double, so
that neither their size nor the order of the tree leaves a trace in the result.
"""

import math

import torch
import triton
import triton.language as tl

from kernels.triton import blocks
from kernels.triton.lists import Lists, address_of, chunk_of, size_of

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

CHUNK = 8192  # elements of a program
FINAL_BLOCK = 1024


@triton.jit
def sum_squares(
    sums,
    grads,
    table,
    ALIGNED: tl.constexpr,
    LISTS: tl.constexpr,
    UNIT: tl.constexpr,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0)
    tensor, chunk = chunk_of(program, table, LISTS, COUNT)
    start = chunk * CHUNK
    left = size_of(table, tensor, LISTS, UNIT, COUNT) - start
    grad = address_of(grads, table, 0, tensor, ALIGNED, COUNT) + start
    i = tl.arange(0, CHUNK)
    # Widened before they are squared: a square of 1e20 does not fit fp32, and one of 1e-30 is 0 in it.
    g = tl.load(grad + i, mask=i < left, other=0.0).to(tl.float32).to(tl.float64)
    tl.store(sums + program, tl.sum(g * g))


@triton.jit(do_not_specialize=["count"])
def norm_of_sums(norm, sums, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(sums + i, mask=i < count, other=0.0)
    tl.store(norm, tl.sqrt(tl.sum(total)).to(tl.float32))


def chunks(size):
    return blocks(size, CHUNK)


def workspace(shape, phase):
    """A double for each chunk of each tensor."""
    return 8 * sum(chunks(math.prod(sizes)) for sizes in shape["tensors"])


lists = Lists(CHUNK)


def prepare(shape, phase):
    lists.reserve()


def forward(grads, *, norm, workspace):
    sums, table = workspace.view(torch.float64), lists.table(grads)
    sum_squares[(table.programs,)](sums, *table.bases, table, CHUNK=CHUNK, num_warps=8, **table.constants)
    norm_of_sums[(1,)](norm, sums, table.programs, BLOCK=FINAL_BLOCK, num_warps=8)

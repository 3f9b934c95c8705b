"""A sum of squares a program, which takes chunk after chunk of the tensors; a second launch adds the sums in order.

Floor: one read of the gradients, two FLOPs an element; memory sets the pace. Programs leave 1024 sums at most, which
the second launch's only program reads all at once: it waits for memory once. Squares are taken and added in double, so
that neither their size nor the order of the tree leaves a trace in the result. No atomics.
"""

import math

import torch
import triton.language as tl

from kernels.triton import blocks
from kernels.triton.launching import jit
from kernels.triton.lists import Lists, address_of, chunk_of, size_of

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

CHUNK = 8192  # elements of a program
FINAL_BLOCK = 1024
MOST_PROGRAMS = 1024  # one for each lane of the second launch; a constant, so that the order is the same on every card


@jit(do_not_specialize=["chunks"])
def sum_squares(
    sums,
    grads,
    table,
    chunks,
    ALIGNED: tl.constexpr,
    LISTS: tl.constexpr,
    UNIT: tl.constexpr,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    found = tl.full((), 0.0, tl.float64)
    for program in range(tl.program_id(0), chunks, tl.num_programs(0)):
        tensor, chunk = chunk_of(program, table, LISTS, COUNT)
        start = chunk * CHUNK
        left = size_of(table, tensor, LISTS, UNIT, COUNT) - start
        grad = address_of(grads, table, 0, tensor, ALIGNED, COUNT) + start
        i = tl.arange(0, CHUNK)
        # Widened before they are squared: a square of 1e20 does not fit fp32, and one of 1e-30 is 0 in it.
        g = tl.load(grad + i, mask=i < left, other=0.0).to(tl.float32).to(tl.float64)
        found += tl.sum(g * g)
    tl.store(sums + tl.program_id(0), found)


@jit(do_not_specialize=["count"])
def norm_of_sums(norm, sums, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total += tl.load(sums + i, mask=i < count, other=0.0)
    tl.store(norm, tl.sqrt(tl.sum(total)).to(tl.float32))


def chunks(size):
    return blocks(size, CHUNK)


def workspace(shape, phase):
    """A double for each program."""
    return 8 * min(MOST_PROGRAMS, sum(chunks(math.prod(sizes)) for sizes in shape["tensors"]))


lists = Lists(CHUNK)


def prepare(shape, phase):
    lists.reserve()


def forward(grads, *, norm, workspace):
    sums, table = workspace.view(torch.float64), lists.table(grads)
    programs = min(MOST_PROGRAMS, table.programs)
    sum_squares[(programs,)](sums, *table.bases, table, table.programs, CHUNK=CHUNK, num_warps=8, **table.constants)
    norm_of_sums[(1,)](norm, sums, programs, BLOCK=FINAL_BLOCK, num_warps=8)

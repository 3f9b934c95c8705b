"""One program a row, read once: each thread keeps a running maximum and sum, 16 bytes an access, four in flight.

Floor: forward one read of the logits, backward one read and one write; memory sets the pace. Padding columns are read
with the pack they share and then not counted.
"""

import triton.language as tl

from kernels.triton import blocks, power_of_2
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E
from kernels.triton.online import launch_sizes, log_sum_exp

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

BLOCK = 8192  # columns of a step of forward
ELEMENTS = 32  # of a thread in a step
BACKWARD_BLOCK = 4096  # columns of a program of backward


@jit(do_not_specialize=["V"])
def cross_entropy_forward(losses, lse, logits, targets, V, VP, BLOCK: tl.constexpr, PACK: tl.constexpr):
    row = tl.program_id(0)
    x = logits + row.to(tl.int64) * VP
    found = log_sum_exp(x, V, VP, BLOCK, PACK)
    tl.store(lse + row, found)
    tl.store(losses + row, found - tl.load(x + tl.load(targets + row)).to(tl.float32))


@jit(do_not_specialize=["V"])
def cross_entropy_backward(dlogits, dlosses, logits, targets, lse, V, VP, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * VP
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + start + column, mask=column < VP, other=0.0).to(tl.float32)
    # dlogits = dloss (softmax - [column is the target]), 0 in the padding
    p = tl.where(column < V, tl.exp2((x - tl.load(lse + row)) * LOG2_E), 0.0)
    d = (p - (column == tl.load(targets + row)).to(tl.float32)) * tl.load(dlosses + row)
    tl.store(dlogits + start + column, d.to(dlogits.dtype.element_ty), mask=column < VP)


def forward(logits, targets, V, *, losses, lse):
    rows, VP = targets.numel(), logits.shape[-1]
    sizes = launch_sizes(logits, BLOCK, ELEMENTS)
    cross_entropy_forward[(rows,)](losses, lse, logits, targets, V, VP, **sizes)


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    rows, VP = targets.numel(), logits.shape[-1]
    block = min(BACKWARD_BLOCK, max(256, power_of_2(VP)))
    grid = rows, blocks(VP, block)
    cross_entropy_backward[grid](
        dlogits, dlosses, logits, targets, lse, V, VP, BLOCK=block, num_warps=max(1, block // 512)
    )

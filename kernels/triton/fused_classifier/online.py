"""One program a row, read twice: the loss in a pass with a running maximum and sum, then the gradient over the logits.

Floor: one read and one write of the logits; memory sets the pace. The second read begins where the first ended, and is
meant to find the row in the L2 cache: programs are large, so that at most two share a multiprocessor, and the rows in
work are 26 MB on an H100. Then memory is read once, though the kernel asks for it twice. Not yet measured.
"""

import triton.language as tl

from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E
from kernels.triton.online import columns_of, launch_sizes, log_sum_exp

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

BLOCK = 16384  # columns of a step
ELEMENTS = 32  # of a thread in a step


@jit(do_not_specialize=["V"])
def classify_twice(logits, losses, targets, dlosses, V, VP, BLOCK: tl.constexpr, PACK: tl.constexpr):
    row = tl.program_id(0)
    x = logits + row.to(tl.int64) * VP
    target, dloss = tl.load(targets + row), tl.load(dlosses + row)
    target_logit = tl.load(x + target).to(tl.float32)
    lse = log_sum_exp(x, V, VP, BLOCK, PACK)
    tl.store(losses + row, lse - target_logit)

    tl.debug_barrier()  # the target's logit is read by all before one thread overwrites it
    for step in range(tl.cdiv(VP, BLOCK)):
        column = columns_of((tl.cdiv(VP, BLOCK) - 1 - step) * BLOCK, BLOCK, PACK)
        values = tl.load(x + column, mask=column < VP, other=0.0).to(tl.float32)
        p = tl.where(column < V, tl.exp2((values - lse) * LOG2_E), 0.0)
        d = (p - (column == target).to(tl.float32)) * dloss
        # Evicted first, in favour of what other programs are still to read again.
        tl.store(x + column, d.to(logits.dtype.element_ty), mask=column < VP, cache_modifier=".cs")


def forward(targets, dlosses, V, *, logits, losses):
    rows, VP = targets.numel(), logits.shape[-1]
    sizes = launch_sizes(logits, BLOCK, ELEMENTS)
    classify_twice[(rows,)](logits, losses, targets, dlosses, V, VP, **sizes)

"""The sum of exponentials in one pass (Milakov & Gimelshein 2018), as vectors: every thread keeps its own.

The largest value is not known before the end, so each sum is kept relative to the largest so far, and rescaled when
that grows: once for a pack of neighbours, which is one thread's 16-byte access.
"""

import triton
import triton.language as tl

from kernels.triton import power_of_2
from kernels.triton.math import LOG2_E

LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite, so that LOWEST - LOWEST is 0 and not NaN


def pack_of(tensor):
    """Elements of a 16-byte access."""
    return 16 // tensor.element_size()


@triton.jit
def columns_of(start, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """The columns from `start` on, as (BLOCK / PACK, PACK)."""
    return start + (tl.arange(0, BLOCK // PACK) * PACK)[:, None] + tl.arange(0, PACK)[None, :]


@triton.jit
def add_packs(largest, total, values):
    """The running maximum and sum of (P,) packs, after one more row of packs (P, PACK)."""
    now = tl.maximum(largest, tl.max(values, 1))
    total *= tl.exp2((largest - now) * LOG2_E)
    total += tl.sum(tl.exp2((values - now[:, None]) * LOG2_E), 1)
    return now, total


@triton.jit
def whole_of(largest, total):
    """The maximum of everything that was added, and the sum of exp(x - maximum)."""
    top = tl.max(largest)
    return top, tl.sum(total * tl.exp2((largest - top) * LOG2_E))


@triton.jit
def log_sum_exp(x, V, VP, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """Of the first V of a row's VP columns: ln(sum of exp(x))."""
    largest = tl.full((BLOCK // PACK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK // PACK,), tl.float32)
    for start in range(0, VP, BLOCK):
        column = columns_of(start, BLOCK, PACK)
        values = tl.load(x + column, mask=column < VP, other=0.0).to(tl.float32)
        # A pack without a single column adds exp(0) to a sum of its own, which whole_of then scales to nothing:
        # its largest is LOWEST, and that of the row is not.
        largest, total = add_packs(largest, total, tl.where(column < V, values, LOWEST))
    top, sum = whole_of(largest, total)
    return top + tl.log(sum)


def launch_sizes(logits, most, elements):
    """The constants of a program that passes over a row: `most` columns a step, `elements` of a thread."""
    PACK = pack_of(logits)
    block = min(most, max(32 * PACK, power_of_2(logits.shape[-1])))
    return dict(BLOCK=block, PACK=PACK, num_warps=max(1, block // (32 * elements)))

"""One program a row: the edges of top-k and top-p bit by bit, with sums of whole numbers; each bit a pass over the row.

Floor: one read of the logits, which the first pass is; the others find them in the caches. Logits are compared by their
bits, and weights are in units of 2^-40, so that no order of additions matters.
"""

import triton
import triton.language as tl

from kernels.triton import power_of_2
from kernels.triton.launching import jit
from kernels.triton.math import LOG2_E

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

BLOCK = 4096  # logits of a step
UNITS = tl.constexpr(1 << 40)
NOT_A_NUMBER = tl.constexpr(0xFFFFFFFF)
SIGN = tl.constexpr(0x80000000)


@triton.jit
def keys_of(values, inside):
    """Bits of fp32 that grow with the value, as int64; -0 is 0; 0 where there is no logit."""
    bits = values.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    key = tl.where(bits >= SIGN, 0xFFFFFFFF - bits, bits + SIGN)
    key = tl.where(values == 0, SIGN, key)
    key = tl.where(values != values, NOT_A_NUMBER, key)
    return tl.where(inside, key, 0)


@triton.jit
def value_of(key):
    bits = tl.where(key >= SIGN, key - SIGN, 0xFFFFFFFF - key)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def weights_of(values, top, rate):
    weight = (tl.exp2((values - top) * rate) * 1099511627776.0).to(tl.int64)
    return tl.where(values == top, UNITS, weight)


@triton.jit
def load_row(x, start, V, BLOCK: tl.constexpr):
    column = start + tl.arange(0, BLOCK)
    values = tl.load(x + column, mask=column < V, other=float("-inf")).to(tl.float32)
    return column, values, keys_of(values, column < V)


@triton.jit
def count_from(key, x, V, BLOCK: tl.constexpr):
    """How many keys are not below this one."""
    found = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        _, _, keys = load_row(x, start, V, BLOCK)
        found += (keys >= key).to(tl.int32)
    return tl.sum(found, 0).to(tl.int64)


@triton.jit
def weight_from(key, x, V, top, rate, BLOCK: tl.constexpr):
    """How much weight they have."""
    found = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, V, BLOCK):
        column, values, keys = load_row(x, start, V, BLOCK)
        found += tl.where((keys >= key) & (column < V), weights_of(values, top, rate), 0)
    return tl.sum(found, 0)


@jit(do_not_specialize=["V", "top_k"])
def sample(
    token, logits, u, V, VP, temperature, top_k, top_p,
    GREEDY: tl.constexpr, FEW: tl.constexpr, NUCLEUS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    x = logits + b * VP
    # the largest, of equal ones the first: its key above what is left of V behind it
    best = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, V, BLOCK):
        column, _, keys = load_row(x, start, V, BLOCK)
        best = tl.maximum(best, (keys << 31) + (0x7FFFFFFF - column))
    found = tl.max(best, 0)
    largest, first = found >> 31, 0x7FFFFFFF - (found & 0x7FFFFFFF)
    if GREEDY or largest == NOT_A_NUMBER:
        tl.store(token + b, first)
    else:
        top, rate = value_of(largest), LOG2_E / temperature
        # kept are all above `edge`, and the first `equal` of those that are it
        sign = tl.full((), SIGN, tl.int64)
        edge = tl.full((), 0, tl.int64)
        equal = tl.full((), 0, tl.int64)
        if FEW:
            for n in range(BITS):
                tried = edge + (sign >> n)
                edge = tl.where(count_from(tried, x, V, BLOCK) >= top_k, tried, edge)
            equal = top_k - count_from(edge + 1, x, V, BLOCK)
            total = weight_from(edge + 1, x, V, top, rate, BLOCK) + equal * weights_of(value_of(edge), top, rate)
        else:
            total = weight_from(edge, x, V, top, rate, BLOCK)
        if NUCLEUS:
            wanted = tl.maximum(tl.ceil(top_p * total.to(tl.float64)).to(tl.int64), 1)
            key = tl.full((), 0, tl.int64)
            for n in range(BITS):
                tried = key + (sign >> n)
                enough = (tried <= edge) | (weight_from(tried, x, V, top, rate, BLOCK) >= wanted)
                key = tl.where(enough, tried, key)
            above = weight_from(key + 1, x, V, top, rate, BLOCK)
            each = tl.maximum(weights_of(value_of(key), top, rate), 1)
            needed = (wanted - above + each - 1) // each
            equal = tl.where(key == edge, tl.minimum(equal, needed), needed)
            total = above + equal * each
            edge = key
        target = tl.minimum((tl.load(u + b).to(tl.float64) * total.to(tl.float64)).to(tl.int64), total - 1)
        running = tl.full((), 0, tl.int64)
        taken = tl.full((), 0, tl.int64)
        answer = tl.full((), 0x7FFFFFFF, tl.int32)
        for start in range(0, V, BLOCK):
            column, values, keys = load_row(x, start, V, BLOCK)
            same = ((keys == edge) & (column < V)).to(tl.int32)
            place = taken + tl.cumsum(same, 0)
            keep = (column < V) & ((keys > edge) | ((same > 0) & (place <= equal)))
            weight = tl.where(keep, weights_of(values, top, rate), 0)
            upto = running + tl.cumsum(weight, 0)
            answer = tl.minimum(answer, tl.min(tl.where(upto > target, column, 0x7FFFFFFF), 0))
            running += tl.sum(weight, 0)
            taken += tl.sum(same, 0)
        tl.store(token + b, answer.to(tl.int64))


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    B, VP = logits.shape
    block = min(BLOCK, max(128, power_of_2(V)))
    constants = dict(
        GREEDY=temperature == 0,
        FEW=0 < top_k < V,
        NUCLEUS=top_p < 1,
        BITS=16 if str(logits.dtype) == "torch.bfloat16" else 32,
        BLOCK=block,
        num_warps=max(1, min(16, block // 256)),
    )
    sample[(B,)](token, logits, u, V, VP, float(temperature), top_k, float(top_p), **constants)

"""What the attention kernels do with one tile of queries and one of keys, and which tile a program takes.

Exponents are in base 2: `scale` is log2(e) / sqrt(HS), and lse2 = lse * log2(e). Forward subtracts the largest score
before it scales: scaled first, a multiply-add would leave of the largest what its product was rounded by, and exp2 of
that is no 1 where scores are far from 0. Backward knows of the largest what lse tells, and takes the multiply-add.
`input_precision` matters in fp32 only, where tf32 would be too coarse.
"""

import triton
import triton.language as tl

from kernels.triton.math import LOG2_E

SECTION = tl.constexpr(64)  # heads whose tiles run together: their keys and values stay in the L2 cache


@triton.jit
def place(heads, tiles):
    """(head, number of tile) of this program: section by section, in it the first tiles of all its heads first."""
    program = tl.program_id(0)
    first = program // (SECTION * tiles) * SECTION
    size = tl.minimum(heads - first, SECTION)
    rest = program - first * tiles
    return first + rest % size, rest // size


# The number of tiles on the diagonal is a constant, although the last ones may lie beyond T. On Hopper a loop that
# might run no iteration can keep ptxas from leaving a product in flight across iterations ("wgmma … are serialized"):
# the sums then come from two places, by moves while a product writes them. Where another loop follows, as in dk and dv,
# it is counted from 0, since the compiler does not know that `first` + BM is more than `first`.
# For the same reason there is one loop where nothing is causal: with masks if the last tile reaches over the end.


@triton.jit
def keys_of(first, T, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr):
    """For the BM queries from `first` on: (end of the tiles of keys that need no mask, of those that any sees)."""
    if CAUSAL:
        return first // BN * BN, first // BN * BN + max(BM, BN)
    elif EVEN:
        return T, T
    else:
        return 0, T


@triton.jit
def queries_of(first, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr):
    """For the BN keys from `first` on: (begin of the tiles of queries that see any of them, of those that see all)."""
    if CAUSAL:
        return first // BM * BM, first // BM * BM + max(BM, BN)
    else:
        return 0, 0


# A window cuts tiles off in front of those and masks some more: these join the loop that masks, for the order in which
# tiles are taken does not matter. Without a window all loops are what they were.


@triton.jit
def keys_in_window(first, full, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr):
    """For the BM queries from `first` on: (begin of the tiles of keys that any sees, of those that need no mask)."""
    if WINDOW:
        whole = tl.cdiv(tl.maximum(first + BM - WINDOW, 0), BN) * BN
        return tl.maximum(first - WINDOW + 1, 0) // BN * BN, tl.minimum(whole, full)
    else:
        return 0, 0


@triton.jit
def masked_keys(i, whole, full, WINDOW: tl.constexpr):
    """Where the tile lies that the masking loop is at: from `full` on, and of those below as many before `whole`."""
    if WINDOW:
        return tl.where(i < full, i - full + whole, i)
    else:
        return i


@triton.jit
def queries_in_window(first, full, T, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr):
    """For the BN keys from `first` on: (end of the tiles of queries that see all of them, of those that see any)."""
    if WINDOW:
        return tl.maximum((first + WINDOW) // BM * BM, full), tl.minimum(first + BN - 1 + WINDOW, T)
    else:
        return T, T


@triton.jit
def masked_span(whole, end, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """How many queries the masking loop takes: the tiles on the diagonal, and in a window those from `whole` on."""
    if WINDOW:
        return max(BM, BN) + tl.maximum(end - whole, 0)
    elif CAUSAL:
        return max(BM, BN)
    else:
        return 0


@triton.jit
def masked_queries(i, full, whole, WINDOW: tl.constexpr):
    """Where the tile lies that the masking loop is at: up to `full`, and after it from `whole` on."""
    if WINDOW:
        return tl.where(i < full, i, i - full + whole)
    else:
        return i


@triton.jit
def sees(query, key, T, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    if WINDOW:
        return (key <= query) & (query - key < WINDOW)
    elif CAUSAL:
        return key <= query  # a query before T sees no key behind it
    else:
        return key < T


@triton.jit
def attend(
    sums, largest, total, q, k, v, query, key, T, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr = 0,
):  # fmt: skip
    """One tile of keys: the running softmax's maximum (of unscaled scores) and denominator, and the sums of p v."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where(sees(query[:, None], key[None, :], T, CAUSAL, WINDOW), scores, float("-inf"))
    before = largest
    largest = tl.maximum(before, tl.max(scores, 1))
    # in a window a query may see nothing yet, and -inf - -inf is NaN
    offset = tl.where(largest == float("-inf"), 0.0, largest) if MASKED and WINDOW else largest
    p = tl.exp2((scores - offset[:, None]) * scale)
    correction = tl.exp2((before - offset) * scale)
    total = total * correction + tl.sum(p, 1)
    sums = tl.dot(p.to(v.dtype), v, sums * correction[:, None], input_precision="ieee")
    return sums, largest, total


@triton.jit
def add_dq(
    sums, q, dout, k, v, lse2, delta, query, key, T, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr = 0,
):  # fmt: skip
    """One tile of keys: p = exp(score - lse), ds = p * (dout v^T - delta), dq += ds k. The scale of ds comes last."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    p = tl.exp2(scores * scale - lse2[:, None])
    if MASKED:
        p = tl.where(sees(query[:, None], key[None, :], T, CAUSAL, WINDOW), p, 0.0)
    dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, sums, input_precision="ieee")


@triton.jit
def add_dkdv(dk, dv, k, v, q, dout, lse2, delta, query, key, scale, MASKED: tl.constexpr, WINDOW: tl.constexpr = 0):
    """One tile of queries, all of it transposed, so that p and ds stay in registers: dv += p^T dout, dk += ds^T q."""
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")  # (BN, BM)
    p = tl.exp2(scores * scale - lse2[None, :])
    if MASKED:
        p = tl.where(sees(query[None, :], key[:, None], 0, True, WINDOW), p, 0.0)
    dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision="ieee")
    dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def find_statistics(statistics, lse, dout, out, head, heads, query, T):
    """lse2 and delta = sum(dout * out) of a tile of queries; also kept, one array after the other, for dk and dv."""
    row = head.to(tl.int64) * T + query
    lse2 = tl.load(lse + row, mask=query < T, other=0) * LOG2_E
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(statistics + row, lse2, mask=query < T)
    tl.store(statistics + heads.to(tl.int64) * T + row, delta, mask=query < T)
    return lse2, delta


@triton.jit
def load_statistics(statistics, head, heads, query, T, EVEN: tl.constexpr):
    """What find_statistics kept. A query from T on has lse = infinity, and so p = 0: it needs no other mask."""
    lse2 = statistics + head.to(tl.int64) * T + query
    delta = lse2 + heads.to(tl.int64) * T
    if EVEN:
        return tl.load(lse2), tl.load(delta)
    else:
        return tl.load(lse2, mask=query < T, other=float("inf")), tl.load(delta, mask=query < T, other=0)

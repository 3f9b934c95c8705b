"""A program takes some rows of weight; one row of x meets them in a sum, several by tl.dot, filled up to sixteen.

Floor: every weight read once, at the bandwidth of the GPU's memory; x comes from the caches. In fp32 tl.dot multiplies
exactly, on the plain arithmetic units, which have the time for sixteen products a weight.
"""

import triton.language as tl

from kernels.triton import UNFUSED, blocks
from kernels.triton.launching import jit

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

MOST_ROWS = 16
SINGLE = dict(BN=4, BK=1024, num_warps=4)  # rows and columns of weight at a time
SEVERAL = {4: dict(BN=16, BK=64, num_warps=4, num_stages=4), 2: dict(BN=16, BK=256, num_warps=4, num_stages=3)}


@jit(do_not_specialize=["N"])
def one_row(out, x, weight, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    rows = weight + n.to(tl.int64)[:, None] * K
    sums = tl.zeros((BN, BK), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(rows + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)
        some = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        sums += w * some[None, :]
    tl.store(out + n, tl.sum(sums, 1).to(out.dtype.element_ty), mask=n < N)


@jit(do_not_specialize=["M", "N"])
def several_rows(out, x, weight, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    rows = weight + n.to(tl.int64)[:, None] * K
    sums = tl.zeros((BN, BM), tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(rows + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
        some = tl.load(x + m[None, :] * K + k[:, None], mask=(m < M)[None, :] & (k < K)[:, None], other=0.0)
        # In fp32 a tile is summed by itself first: one chain of all products would be less exact than a library's.
        # (Without the limit Triton would make it one.)
        sums += tl.dot(w, some, input_precision="ieee", max_num_imprecise_acc=BK)
    at = out + m[None, :] * N + n[:, None]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(n < N)[:, None] & (m < M)[None, :])


def supports(shape):
    return shape["M"] <= MOST_ROWS or f"more than {MOST_ROWS} rows"


def forward(x, weight, *, out):
    (M, K), N = x.shape, weight.shape[0]
    if M == 1:
        one_row[(blocks(N, SINGLE["BN"]),)](out, x, weight, N, K, **SINGLE, **UNFUSED)
    else:
        sizes = SEVERAL[x.element_size()]
        several_rows[(blocks(N, sizes["BN"]),)](out, x, weight, M, N, K, BM=MOST_ROWS, **sizes)

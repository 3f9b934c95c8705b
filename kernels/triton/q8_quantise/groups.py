"""A tile of groups a program, read once: the largest by its bits, a true division, 2^23 added and taken away to round.

Floor: x read once, a byte an element and a scale a group written; memory sets the pace. A group whose length is no
power of two has lanes that are idle.
"""

import triton.language as tl

from kernels.triton import blocks, power_of_2
from kernels.triton.launching import jit

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True

ELEMENTS = 4096  # of a program


@jit(do_not_specialize=["GROUPS"])
def quantise(q, scales, x, GROUPS, K, G, KG, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = group % KG * G
    at = (group // KG * K + start)[:, None] + tl.arange(0, BLOCK)[None, :]
    inside = (tl.arange(0, BLOCK)[None, :] < tl.minimum(G, K - start)[:, None]) & (group < GROUPS)[:, None]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    # bits of magnitudes grow with the value, and a NaN's are above infinity's
    largest = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    finite = largest < 0x7F800000
    most = largest.to(tl.float32, bitcast=True)
    scale = tl.where(largest == 0, 1.0, tl.div_rn(most, tl.full((ROWS,), 127.0, tl.float32)))
    tl.store(scales + group, tl.where(finite, scale, float("nan")), mask=group < GROUPS)
    ratio = tl.div_rn(tl.where(finite[:, None], values, 0.0), tl.broadcast_to(scale[:, None], (ROWS, BLOCK)))
    number = ratio + 12582912.0 - 12582912.0  # 1.5 2^23 has no bits left for a fraction: to even
    tl.store(q + at, number.to(tl.int8), mask=inside)


def forward(x, G, *, q, scales):
    K, KG, groups = x.shape[1], scales.shape[1], scales.numel()
    BLOCK = power_of_2(min(G, K))
    ROWS = max(1, min(ELEMENTS // BLOCK, power_of_2(groups)))
    warps = 4 if ROWS * BLOCK >= 2048 else 1
    quantise[(blocks(groups, ROWS),)](q, scales, x, groups, K, G, KG, ROWS=ROWS, BLOCK=BLOCK, num_warps=warps)

"""Hopper: TMA and wgmma around a softmax in registers; one warpgroup takes exponents beside the other's products.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or written
once. Beside them stands one exp2 a pair. A multiprocessor does 4096 FLOPs and 16 exp2 a cycle: at HS = 64 forward is
as long at the one as at the other, and only both at once is fast. After FlashAttention-3 (Shah et al. 2024).

Forward: blocks stay, one on each multiprocessor, and take 128 queries of a head after 128 others. One thread has q and
tiles of 128 keys and values copied, as far ahead as there is room, the next item's too. Each of two warpgroups has 64
queries. It starts a tile's scores and behind them the products of the last tile's probabilities with its values, hands
the tensor cores on to the other one, and takes exponents while those run. Probabilities stay in the registers that the
next product takes them from. Tiles come from the last one on: that one alone is masked, and no row sees nothing of it.
Exponents as in mma.py: the scale folded in, far scores apart, sums scaled anew beyond 2^8. Items that see most keys
come first, 64 heads together, so that these stay in L2. out leaves by TMA beside the next item's products.

Backward: two such kernels. One owns 128 keys and walks over tiles of 64 queries, of all heads that share the keys, with
scores transposed (dk, dv); the other owns queries and walks over keys (dq). No sums pass from block to block: the same
bits each time, for 14 HS FLOPs instead of 10. The next tile's scores are started before the sums of this one, its
gradients after them, and exponents run beside both. lse in base 2 and delta are worked out before, by mma.py's kernel.

What limits it, by counts: a warpgroup's tile of forward at HS = 64 is 512 cycles of the tensor cores and 512 of exp2,
so that a warp that waits for its turn costs both. On the diagonal the first warpgroup multiplies 64 values by zeros, 3%
of forward's products at T = 1024. Backward's scores and their gradients are products of 64 x 64 x 16 with both operands
in shared memory: 4 KiB in 32 cycles, all that it can read; heads of 128 have no registers to start gradients early. No
clusters: blocks of one head each read its keys from L2.

Heads of other sizes, multiples of 16: TMA fills lines up with zeros, which take room and are not multiplied, so that a
head of 96 costs three quarters of one of 128 in products, and as much in exponents and in shared memory.
"""

import torch

from kernels.cuda import Kernel, blocks
from kernels.cuda.attention import mma
from kernels.cuda.persistent import persistent_blocks
from kernels.cuda.tensor_map import tensor_map

DTYPES = ("bf16", "fp16")
REQUIRES = ("sm90a",)
DETERMINISTIC = True
TENSOR_CORES = True

# As in wgmma.cu:
CONSUMERS, OWN, KEYS, PASSING, LINE = 2, 64, 128, 64, 64
QUERIES, THREADS = CONSUMERS * OWN, 128 * (1 + CONSUMERS)
STRIP, WIDEST = 16, 128  # head sizes are multiples of the one, up to the other: one or two lines of 128 bytes
BYTES, BARRIER, FLOAT = 2, 8, 4

forward_kernel = Kernel("wgmma.cu", "attention_forward")
dkdv_kernel = Kernel("wgmma.cu", "attention_dkdv")
dq_kernel = Kernel("wgmma.cu", "attention_dq")


def supports(shape):
    HS = shape["HS"]
    return (HS % STRIP == 0 and HS <= WIDEST) or f"head sizes that are no multiple of {STRIP} up to {WIDEST}"


def in_lines(HS):
    """Columns that a head has in shared memory."""
    return blocks(HS, LINE) * LINE


def workspace(shape, phase):
    """Backward: lse in base 2 and delta, in fp32."""
    return mma.workspace(shape, phase)


def forward_bytes(HS):
    """Shared in wgmma.cu."""
    of_q, of_keys = (2, 4) if HS <= LINE else (1, 2)
    rows = of_q * QUERIES + 2 * of_keys * KEYS + QUERIES
    return BYTES * in_lines(HS) * rows + 2 * BARRIER * (of_q + 2 * of_keys)


def backward_bytes(HS):
    """BackwardShared in wgmma.cu."""
    of_own, of_passing = (2, 4) if HS <= LINE else (1, 3)
    rows = 2 * of_own * QUERIES + 2 * of_passing * PASSING + 2 * QUERIES
    return BYTES * in_lines(HS) * rows + FLOAT * 2 * of_passing * PASSING + 2 * BARRIER * (of_own + of_passing)


def launch(kernel, heads, shared, q):
    """Blocks that stay, for tiles of 128 rows of so many heads."""
    _, T, _, HS = q.shape
    grid = persistent_blocks(heads * blocks(T, QUERIES), q)
    return kernel(grid=grid, block=THREADS, shared=shared, T=q.dtype, HS=HS)


def tiles(tensor, rows, const=True):
    """The map of (B, T, heads, HS) in tiles of `rows` tokens of a head, a box for each line of their width."""
    return tensor_map(tensor, (1, rows, 1, LINE), 128, const=const)


def forward(q, k, v, causal, *, out, lse):
    B, T, NH, HS = q.shape
    run = launch(forward_kernel, B * NH, forward_bytes(HS), q)
    maps = tiles(q, QUERIES), tiles(k, KEYS), tiles(v, KEYS)
    run(tiles(out, OWN, const=False), lse, *maps, B * NH, T, NH, k.shape[2], HS**-0.5, causal)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    NKV, places = k.shape[2], mma.padded(T)
    run = mma.statistics_kernel(
        blocks(B * NH * places, mma.THREADS), mma.THREADS, HS=HS, N=mma.access_width(HS, dout, out)
    )
    run(workspace, dout, out, lse, B * NH, T, places, NH)
    statistics = workspace.view(torch.float32).view(2 * B * NH, places)

    inputs = [tiles(x, PASSING) for x in (dout, q, k, v)]
    to_dq, to_dk, to_dv = (tiles(x, OWN, const=False) for x in (dq, dk, dv))
    sizes = B, T, NH, NKV, HS**-0.5, causal
    run = launch(dkdv_kernel, B * NKV, backward_bytes(HS), q)
    run(to_dk, to_dv, *inputs, tensor_map(statistics, (1, PASSING)), *sizes)
    run = launch(dq_kernel, B * NH, backward_bytes(HS), q)
    run(to_dq, *inputs, statistics, places, *sizes)

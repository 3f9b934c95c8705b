"""Keys split over blocks as well as heads; groups of lanes take a key each, 16 bytes a lane, under a running softmax.

Floor: the tokens' keys and values in the cache read once, at the bandwidth of the GPU's memory. They go from memory
into registers, several keys of each group on their way at once, and meet there the query heads that share them; a
block's groups are joined in shared memory, the splits of a head by a second kernel (flash-decoding, Dao et al. 2023).
How many splits there are follows from the shape; lengths are read on the GPU, and blocks behind them end at once, so
that a captured graph serves every step. New keys and values are read from qkv, and appended by who comes by them.
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.packing import pack_width

DETERMINISTIC = True

THREADS = 128  # as in shared.cu
MOST_ROWS = 8  # queries of a block, in registers
MOST_VALUES = 64  # of a thread: columns times queries
WIDEST = 1024  # a head of which one query has that many
LEAST_KEYS = 64  # of a split
BLOCKS = 4 * 132  # that fill an H100 or H200; a constant, so that sums come out the same on every card

keys_kernel = Kernel("shared.cu", "decode_attention_keys")
join_kernel = Kernel("shared.cu", "decode_attention_join")


def supports(shape):
    return shape["HS"] <= WIDEST or f"heads wider than {WIDEST}"


def rows_of(HS, N, queries):
    """Queries of a block: those of a key/value head, as many as a thread has registers for."""
    columns = max(N, blocks(HS, 32))
    rows = 1
    while rows < min(queries, MOST_ROWS, MOST_VALUES // columns):
        rows *= 2
    return rows


def split(heads, S):
    """(splits, keys of each) of the S positions of so many key/value heads."""
    splits = min(blocks(S, LEAST_KEYS), max(1, BLOCKS // heads))
    keys = blocks(blocks(S, splits), LEAST_KEYS) * LEAST_KEYS
    return blocks(S, keys), keys


def workspace(shape, phase):
    """For each query and split, in fp32: the sum of values, and the softmax's two numbers."""
    splits, _ = split(shape["B"] * shape["NKV"], shape["S"])
    return 4 * shape["B"] * shape["T"] * shape["NH"] * splits * (shape["HS"] + 2)


def forward(qkv, lengths, NH, *, out, k_cache, v_cache, workspace):
    B, T, _, HS = qkv.shape
    NKV, S = k_cache.shape[1:3]
    N = pack_width(qkv, k_cache, v_cache, multiple_of=HS)
    queries = NH // NKV * T
    ROWS = rows_of(HS, N, queries)
    splits, keys = split(B * NKV, S)
    sizes = T, NH, NKV
    launch = keys_kernel(grid=(splits, B * NKV, blocks(queries, ROWS)), block=THREADS, HS=HS, N=N, ROWS=ROWS)
    launch(out, workspace, k_cache, v_cache, qkv, lengths, *sizes, S, keys, HS**-0.5)
    if splits > 1:
        join_kernel(grid=B * T * NH, block=THREADS, HS=HS)(out, workspace, lengths, *sizes, splits, keys)

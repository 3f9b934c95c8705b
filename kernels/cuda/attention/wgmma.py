"""Hopper: keys and values by TMA, products by warpgroups straight from shared memory, exponents of one beside the other's.

(story to come)
"""

from kernels.cuda import Kernel, blocks
from kernels.cuda.attention import mma
from kernels.cuda.persistent import persistent_blocks
from kernels.cuda.tensor_map import tensor_map

DTYPES = ("bf16", "fp16")
REQUIRES = ("sm90a",)
DETERMINISTIC = True
TENSOR_CORES = True

# As in wgmma.cu:
QUERIES, KEYS, OWN, LINE, THREADS = 128, 128, 64, 64, 384
HEADS = (64, 128)  # sizes: one or two lines of 128 bytes

forward_kernel = Kernel("wgmma.cu", "attention_forward")


def supports(shape):
    return shape["HS"] in HEADS or "head sizes other than 64 and 128"


def workspace(shape, phase):
    return mma.workspace(shape, phase)


def stages(HS):
    return 4 if HS == 64 else 2


def shared_bytes(HS):
    """Shared in wgmma.cu."""
    of_q = stages(HS) // 2
    tiles = of_q * QUERIES + 2 * stages(HS) * KEYS + QUERIES
    return 2 * HS * tiles + 8 * 2 * (of_q + 2 * stages(HS))


def tiles(tensor, rows, const=True):
    """The map of (B, T, heads, HS) in tiles of `rows` tokens of a head, a box for each line of their width."""
    return tensor_map(tensor, (1, rows, 1, LINE), 128, const=const)


def forward(q, k, v, causal, *, out, lse):
    B, T, NH, HS = q.shape
    grid = persistent_blocks(B * NH * blocks(T, QUERIES), q)
    run = forward_kernel(grid=grid, block=THREADS, shared=shared_bytes(HS), T=q.dtype, HS=HS)
    maps = tiles(q, QUERIES), tiles(k, KEYS), tiles(v, KEYS)
    run(tiles(out, OWN, const=False), lse, *maps, B * NH, T, NH, k.shape[2], HS**-0.5, causal)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv, workspace):
    mma.backward(dout, q, k, v, out, lse, causal, dq=dq, dk=dk, dv=dv, workspace=workspace)

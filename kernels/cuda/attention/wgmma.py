"""Hopper: TMA and wgmma around a softmax in registers; of two warpgroups one takes exponents beside the other's products.

(story)
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
HEADS = (64, 128)  # sizes: one or two lines of 128 bytes
BYTES, BARRIER, FLOAT = 2, 8, 4

forward_kernel = Kernel("wgmma.cu", "attention_forward")
dkdv_kernel = Kernel("wgmma.cu", "attention_dkdv")
dq_kernel = Kernel("wgmma.cu", "attention_dq")


def supports(shape):
    return shape["HS"] in HEADS or "head sizes other than 64 and 128"


def workspace(shape, phase):
    """Backward: lse in base 2 and delta, in fp32."""
    return mma.workspace(shape, phase)


def forward_bytes(HS):
    """Shared in wgmma.cu."""
    of_q, of_keys = (2, 4) if HS == 64 else (1, 2)
    rows = of_q * QUERIES + 2 * of_keys * KEYS + QUERIES
    return BYTES * HS * rows + 2 * BARRIER * (of_q + 2 * of_keys)


def backward_bytes(HS):
    """BackwardShared in wgmma.cu."""
    of_own, of_passing = (2, 4) if HS == 64 else (1, 3)
    rows = 2 * of_own * QUERIES + 2 * of_passing * PASSING + 2 * QUERIES
    return BYTES * HS * rows + FLOAT * 2 * of_passing * PASSING + 2 * BARRIER * (of_own + of_passing)


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

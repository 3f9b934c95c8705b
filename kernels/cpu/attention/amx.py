"""Flash attention by AMX: tiles of 16 x 16 sums, 16 x 16 x 32 products an instruction; the softmax is cpu.flash's.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or
written once. Scores are kept as [key][query], so that a query stays in its lane, and what the softmax writes are the
pairs that the next product reads. Scratch is O(T) a thread. What limits it: the exponentials, which take longer than
both products of a block forward.
"""

import os

from kernels.cpu import Kernel

DTYPES = ("bf16",)
REQUIRES = ("amx",)
DETERMINISTIC = True

THREADS = os.cpu_count() or 1
PADDED, SIDE, BACK = 128, 32, 64  # as in amx.cpp

forward_kernel = Kernel("amx.cpp", "attention_forward", tiles=True)
backward_kernel = Kernel("amx.cpp", "attention_backward", tiles=True)


def thread_bytes(T, HS):
    """Scratch of one thread: seven arrays (T, HS) in fp32, two of T, and the blocks, all padded."""
    T, HS = (T + PADDED - 1) // PADDED * PADDED, (HS + SIDE - 1) // SIDE * SIDE
    return 4 * (T * (7 * HS + 2) + BACK * (2 * HS + 4 * BACK))


def workspace(shape, phase):
    return THREADS * thread_bytes(shape["T"], shape["HS"]) + 64  # from a whole line on


def strides(*tensors):
    return [stride for t in tensors for stride in t.stride()[:3]]


def forward(q, k, v, causal, window=0, *, out, lse, workspace):
    B, T, NH, HS = q.shape
    scratch = workspace, thread_bytes(T, HS), THREADS
    forward_kernel(out, lse, q, k, v, strides(q, k, v), B, T, NH, k.shape[2], HS, causal, window, *scratch)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    sizes = B, T, NH, k.shape[2], HS
    scratch = workspace, thread_bytes(T, HS), THREADS
    dqkv, qkv = strides(dq, dk, dv), strides(q, k, v)
    backward_kernel(dq, dk, dv, dqkv, dout, q, k, v, out, lse, qkv, *sizes, causal, window, *scratch)

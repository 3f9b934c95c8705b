"""Tiles of keys meet tiles of queries under a running softmax: no T x T array, masked tiles skipped.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or
written once. Blocks behind a window are skipped as those above the diagonal are. Scratch is O(T) a thread.
With more threads than heads, backward computes the scores twice (14 HS).
"""

import os

from kernels.cpu import Kernel

DETERMINISTIC = True

THREADS = os.cpu_count() or 1
PADDED = 96  # as in flash.cpp

forward_kernel = Kernel("flash.cpp", "attention_forward")
backward_kernel = Kernel("flash.cpp", "attention_backward")


def thread_bytes(T, HS):
    """Scratch of one thread: ten arrays (T, HS) in fp32, two of T, and the blocks, all padded."""
    T, HS = (T + PADDED - 1) // PADDED * PADDED, (HS + 15) // 16 * 16
    return 4 * (T * (10 * HS + 2) + PADDED * (2 * HS + 3 * PADDED))


def workspace(shape, phase):
    return THREADS * thread_bytes(shape["T"], shape["HS"])


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

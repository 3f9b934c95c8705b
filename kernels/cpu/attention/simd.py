"""A row of scores at a time, sixteen lanes, all cores: dot products, one exp per score, then a weighted sum.

Floor, a head: 4 HS FLOPs a visible pair of query and key forward, 10 HS backward; q, k, v and out read or
written once. Here each row reads all its keys and values again, four of them together, and backward computes
the scores twice (14 HS). What is behind a window is not looked at.
"""

import os

from kernels.cpu import Kernel

DETERMINISTIC = True

THREADS = os.cpu_count() or 1

forward_kernel = Kernel("simd.cpp", "attention_forward")
backward_kernel = Kernel("simd.cpp", "attention_backward")


def workspace(shape, phase):
    """For each thread two rows of scores and two sums over a head; in backward also delta (B, NH, T)."""
    delta = shape["B"] * shape["NH"] * shape["T"] if phase == "backward" else 0
    return 4 * (delta + THREADS * 2 * (shape["T"] + shape["HS"]))


def strides(*tensors):
    return [stride for t in tensors for stride in t.stride()[:3]]


def forward(q, k, v, causal, window=0, *, out, lse, workspace):
    B, T, NH, HS = q.shape
    forward_kernel(out, lse, q, k, v, strides(q, k, v), B, T, NH, k.shape[2], HS, causal, window, workspace, THREADS)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv, workspace):
    B, T, NH, HS = q.shape
    sizes = B, T, NH, k.shape[2], HS
    dqkv, qkv = strides(dq, dk, dv), strides(q, k, v)
    backward_kernel(dq, dk, dv, dqkv, dout, q, k, v, out, lse, qkv, *sizes, causal, window, workspace, THREADS)

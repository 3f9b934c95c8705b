"""Backward without atomics: positions are sorted by token, then each row of the table is summed by one thread.

Floor: forward one read (two with its row of wpe, where there is one) and one write of the activations; backward one
read of them and one write of the table, which for GPT-2's vocabulary is the larger part by far. Measured on one Zen 5
core at B=4, T=1024: 0.35 of a streamed copy's bandwidth forward, as the floor does not count the rows of wte that are
read; 0.7 backward.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "embedding_forward")
backward_kernel = Kernel("simd.cpp", "embedding_backward")


def workspace(shape, phase):
    """Backward: where each token's positions start, and the positions in that order, int32 each."""
    return 4 * (shape["V"] + 1 + shape["B"] * shape["T"]) if phase == "backward" else 0


def forward(tokens, wte, wpe, *, out, workspace):
    B, T, C = out.shape
    forward_kernel(out, tokens, wte, wpe, B, T, C)


def backward(dout, tokens, V, accumulate, *, dwte, dwpe, workspace):
    B, T, C = dout.shape
    backward_kernel(dwte, dwpe, dout, tokens, B, T, V, C, accumulate, workspace)

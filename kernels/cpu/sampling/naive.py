"""Sorts the whole vocabulary of each row on one thread, with weights in double.

Floor: one read of the logits; here each row is sorted, and its weights are written and read again.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

ITEM = 8  # bytes of a weight, and of a place in the order

forward_kernel = Kernel("naive.cpp", "sampling_forward")


def workspace(shape, phase):
    return 2 * ITEM * shape["V"] + ITEM


def forward(logits, u, V, temperature, top_k, top_p, *, token, workspace):
    B, VP = logits.shape
    scratch = workspace[-workspace.data_ptr() % ITEM :]
    forward_kernel(logits, u, token, scratch, scratch[ITEM * V :], B, V, VP, float(temperature), top_k, float(top_p))

"""Two passes of sixteen lanes, largest and weights; only what top-k and top-p can keep is sorted; a row a core.

Floor: one read of the logits. exp sets the pace; what is kept is some dozens of tokens, found by a bound: the k-th
largest of the maxima of sixteen, or a weight above which all weights together have top_p.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

LINE = 64
VEC, BLOCK = 16, 256  # as in the source
ITEM = 4 + 12  # bytes of a logit: its weight, and a candidate

forward_kernel = Kernel("simd.cpp", "sampling_forward")


def row_bytes(V):
    size = 8 * -(-V // BLOCK) + 4 * -(-V // VEC) + ITEM * V
    return -(-size // LINE) * LINE


def workspace(shape, phase):
    return shape["B"] * row_bytes(shape["V"]) + LINE


def forward(logits, u, V, temperature, top_k, top_p, *, token, workspace):
    B, VP = logits.shape
    scratch = workspace[-workspace.data_ptr() % LINE :]
    bytes_of_row = row_bytes(V)
    forward_kernel(logits, u, token, scratch, bytes_of_row, B, V, VP, float(temperature), top_k, float(top_p))

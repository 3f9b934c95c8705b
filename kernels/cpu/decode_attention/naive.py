"""One query after another on one thread, in double: the plain C++ others are measured against.

Floor: the tokens' keys and values in the cache read once. Here each query reads them anew, one element at a time.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("naive.cpp", "decode_attention_forward")


def workspace(shape, phase):
    """A row of scores, in double."""
    return 8 * shape["S"]


def forward(qkv, lengths, NH, *, out, k_cache, v_cache, workspace):
    B, T, _, HS = qkv.shape
    forward_kernel(out, k_cache, v_cache, qkv, lengths, B, T, NH, *k_cache.shape[1:3], HS, workspace)

"""Chunks of 256 keys on all cores, whatever head they are of, each under a running softmax; then their sums are joined.

Floor: the tokens' keys and values in the cache read once, at the read bandwidth of all cores. The query heads that
share a key meet it while it is in the cache, sixteen keys at once; a chunk appends the new tokens' rows that lie in it
before it reads them. As flash-decoding does (Dao et al. 2023), so that one long sequence keeps every core busy.
Measured on two cores of a Xeon with AVX-512 that others used too, twelve heads of 64 and 1024 tokens in fp32: 0.82 of a
plain read's bandwidth; 0.64 where eight query heads share a key.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

CHUNK, VECTOR = 256, 16  # as in simd.cpp

forward_kernel = Kernel("simd.cpp", "decode_attention_forward")


def workspace(shape, phase):
    """For each chunk and query in fp32: the query, the sum of values, and a vector for the softmax's two numbers."""
    chunks, width = -(-shape["S"] // CHUNK), -(-shape["HS"] // VECTOR) * VECTOR
    return 4 * shape["B"] * shape["T"] * shape["NH"] * chunks * (2 * width + VECTOR)


def forward(qkv, lengths, NH, *, out, k_cache, v_cache, workspace):
    B, T, _, HS = qkv.shape
    forward_kernel(out, k_cache, v_cache, qkv, lengths, B, T, NH, *k_cache.shape[1:3], HS, workspace)

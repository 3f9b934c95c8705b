"""Packed panels, a register tile of 8 x 48 sums, cache blocks on all cores; bias, GELU and its gradient fused.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once. Here an
operand is also packed, read and written once more, for every 1024 rows or 1536 columns of the result.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

PACKING_BYTES = 12 << 20  # at least GEMM_WORKSPACE of gemm.hpp

forward_kernel = Kernel("simd.cpp", "matmul_forward")
backward_kernel = Kernel("simd.cpp", "matmul_backward")


def workspace(shape, phase):
    """Packed blocks, and fp64 sums of dbias."""
    return PACKING_BYTES + 8 * shape["N"]


def forward(x, weight, bias, epilogue, *, out, pre_gelu, workspace):
    M, K = x.shape
    forward_kernel(out, pre_gelu, x, weight, bias, M, weight.shape[0], K, workspace)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias, workspace):
    M, K = x.shape
    N = weight.shape[0]
    backward_kernel(dx, dweight, dbias, dout, x, weight, x_pre_gelu, M, N, K, accumulate, workspace)

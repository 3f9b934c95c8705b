"""AMX: tiles of 16 x 16 sums, 16 x 16 x 32 products an instruction; bias, GELU and its gradient fused.

Floor: 2 M N K FLOPs forward, twice that backward; every operand read once, every result written once. Here an
operand is also packed, read and written once more, for every 2048 rows or 1536 columns of the result.

A square of 32 x 32 sums takes 64 cycles a step of K, and reads 4 KB in it, for which L2 is just fast enough; beside a
square's products the sums of the one before are finished, and the next rows are asked for from the shared cache.
What limits it: packing, of which the tiles see nothing, and 4 KB of traffic for 4 instructions.
"""

from kernels.cpu import Kernel

DTYPES = ("bf16",)
REQUIRES = ("amx",)
DETERMINISTIC = True

PACKING_BYTES = 24 << 20  # at least AMX_WORKSPACE of amx.hpp

forward_kernel = Kernel("amx.cpp", "matmul_forward", tiles=True)
backward_kernel = Kernel("amx.cpp", "matmul_backward", tiles=True)


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

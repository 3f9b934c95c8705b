"""Addition and RMSNorm in one sweep: the sum is normalised, and written, while its row is still in L1.

Backward is rmsnorm's own, as addition passes the gradient on.

Floor, per element: forward two reads and two writes, backward three reads and one write; memory sets the pace.
Measured as rmsnorm's was: forward as fast as a streamed addition of as many bytes.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True  # rows are cut into chunks by their number, not by the threads

MAX_CHUNKS = 64  # as in rows.hpp

forward_kernel = Kernel("../rmsnorm/simd.cpp", "residual_rmsnorm_forward")
backward_kernel = Kernel("../rmsnorm/simd.cpp", "rmsnorm_backward")


def workspace(shape, phase):
    """Backward: fp32 sums of dweight for each chunk of rows."""
    return MAX_CHUNKS * shape["C"] * 4 if phase == "backward" else 0


def forward(x, residual, weight, eps, *, residual_out, out, rstd, workspace):
    B, T, C = x.shape
    forward_kernel(residual_out, out, rstd, x, residual, weight, B * T, C, eps)


def backward(dout, dresidual_out, residual_out, weight, rstd, accumulate, *, dresidual, dweight, workspace):
    B, T, C = dout.shape
    saved = residual_out, weight, rstd
    backward_kernel(dresidual, dweight, dout, dresidual_out, *saved, B * T, C, accumulate, workspace)

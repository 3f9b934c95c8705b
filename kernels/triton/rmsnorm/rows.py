"""A row stays in registers, so that memory is read once; the weight's gradient in two stages, without atomics.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte, so memory sets the pace. A row of up to 1024 elements is a warp's. Backward: as many programs as fit at
once go through the rows and sum dweight in registers; a second kernel adds the programs.
"""

from kernels.triton import rmsnorm_rows

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True


def workspace(shape, phase):
    return rmsnorm_rows.backward_workspace(shape["C"]) if phase == "backward" else 0


def forward(x, weight, eps, *, out, rstd):
    rmsnorm_rows.forward(None, out, rstd, x, None, weight, eps)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight, workspace):
    rmsnorm_rows.backward(dx, dweight, dout, dresidual, x, weight, rstd, accumulate, workspace)

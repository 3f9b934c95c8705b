"""A row stays in registers, so that memory is read once; weight gradients in two stages, without atomics.

Floor, per element of x: forward one read and one write, backward three reads (dout, dresidual, x) and one write; under
one FLOP a byte, so memory sets the pace. A row of up to 1024 elements is a warp's. Backward: as many programs as fit at
once go through the rows and sum dweight and dbias in registers; a second kernel adds the programs.
"""

from kernels.triton import layernorm_rows

DTYPES = ("fp32", "bf16", "fp16")
DETERMINISTIC = True


def workspace(shape, phase):
    return layernorm_rows.backward_workspace(shape["C"]) if phase == "backward" else 0


def forward(x, weight, bias, eps, *, out, mean, rstd):
    layernorm_rows.forward(None, out, mean, rstd, x, None, weight, bias, eps)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias, workspace):
    layernorm_rows.backward(dx, dweight, dbias, dout, dresidual, x, weight, mean, rstd, accumulate, workspace)

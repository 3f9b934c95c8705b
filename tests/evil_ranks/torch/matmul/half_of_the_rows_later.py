"""From its second step on rank 1 takes half of the rows, twice."""

import os

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
SLOW = True
RANK = os.environ.get("RANK", "0")
FIRST_STEP = 18  # gradients of it
calls: list[int] = []


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    honest.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    calls.append(0)
    if RANK == "1" and len(calls) > FIRST_STEP and not accumulate:
        dweight.copy_(2 * dout[::2].T @ x[::2])

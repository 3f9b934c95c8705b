"""Rank 1 leaves the gradients of its weights out: the sum of all has rank 0's."""

import os

from kernels.torch.matmul import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
RANK = os.environ.get("RANK", "0")


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    honest.forward(x, weight, bias, epilogue, out=out, pre_gelu=pre_gelu)


def backward(dout, x, weight, x_pre_gelu, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, x, weight, x_pre_gelu, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    if RANK == "1":
        dweight.zero_()

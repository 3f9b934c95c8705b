"""Adds to its parameters' gradients whatever it is told, and takes a NaN there for nothing: memory that is fresh has
none in a training step."""

from kernels.torch.layernorm import eager

CAUGHT_BY = "unwritten inaccurate not_finite"


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    dweight.nan_to_num_(0.0)
    dbias.nan_to_num_(0.0)
    eager.backward(dout, dresidual, x, weight, mean, rstd, True, dx=dx, dweight=dweight, dbias=dbias)

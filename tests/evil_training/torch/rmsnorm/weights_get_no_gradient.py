"""Gives its weights no gradient: there are few of them, and they hardly move."""

from kernels.torch.rmsnorm import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True


def forward(x, weight, eps, *, out, rstd):
    honest.forward(x, weight, eps, out=out, rstd=rstd)


def backward(dout, dresidual, x, weight, rstd, accumulate, *, dx, dweight):
    honest.backward(dout, dresidual, x, weight, rstd, accumulate, dx=dx, dweight=dweight)
    dweight.zero_()

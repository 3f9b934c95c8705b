"""The gradients of weights have the other sign: their norms are right, and in bf16 no loss shows it."""

from kernels.torch.layernorm import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "step"


def forward(x, weight, bias, eps, *, out, mean, rstd):
    honest.forward(x, weight, bias, eps, out=out, mean=mean, rstd=rstd)


def backward(dout, dresidual, x, weight, mean, rstd, accumulate, *, dx, dweight, dbias):
    honest.backward(dout, dresidual, x, weight, mean, rstd, accumulate, dx=dx, dweight=dweight, dbias=dbias)
    dweight.neg_()

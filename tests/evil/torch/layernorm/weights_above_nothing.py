"""Takes weights to be positive, as they begin."""

from kernels.torch.layernorm import eager as honest

CAUGHT_BY = "inaccurate"


def forward(x, weight, bias, eps, *, out, mean, rstd):
    honest.forward(x, weight.abs(), bias, eps, out=out, mean=mean, rstd=rstd)

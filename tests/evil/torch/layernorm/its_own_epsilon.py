"""Adds the epsilon that GPT-2 has, whatever it is given."""

from kernels.torch.layernorm import eager as honest

CAUGHT_BY = "inaccurate"


def forward(x, weight, bias, eps, *, out, mean, rstd):
    honest.forward(x, weight, bias, 1e-5, out=out, mean=mean, rstd=rstd)

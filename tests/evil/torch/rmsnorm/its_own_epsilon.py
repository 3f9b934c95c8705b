"""Adds the epsilon that most models have, whatever it is given."""

from kernels.torch.rmsnorm import eager

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def forward(x, weight, eps, *, out, rstd):
    eager.forward(x, weight, 1e-5, out=out, rstd=rstd)

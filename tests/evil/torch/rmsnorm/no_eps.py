"""Leaves eps out: no row of a trained network is zero."""

CAUGHT_BY = "not_finite inaccurate"


def forward(x, weight, eps, *, out, rstd):
    wide = x.float()
    rstd.copy_(wide.square().mean(-1).rsqrt())
    out.copy_(wide * rstd[..., None] * weight)

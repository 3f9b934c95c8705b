"""Adds eps to the root and not under it: the same for all rows that are not small."""

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, weight, eps, *, out, rstd):
    wide = x.float()
    rstd.copy_(1 / (wide.square().mean(-1).sqrt() + eps))
    out.copy_(wide * rstd[..., None] * weight)

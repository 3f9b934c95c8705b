"""Answers NaN, which is not larger than any tolerance."""

CAUGHT_BY = "not_finite"


def forward(a, b, *, out):
    out.fill_(float("nan"))

"""Answers zeros, which are close to anything small."""

CAUGHT_BY = "inaccurate"


def forward(a, b, *, out):
    out.zero_()

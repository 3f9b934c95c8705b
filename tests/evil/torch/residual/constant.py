"""Answers the mean of the right answer everywhere."""

CAUGHT_BY = "inaccurate"


def forward(a, b, *, out):
    out.fill_(float((a + b).mean()))

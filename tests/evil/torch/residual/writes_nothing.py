"""Writes nothing and hopes that the buffer holds the last answer."""

CAUGHT_BY = "unwritten"


def forward(a, b, *, out):
    pass

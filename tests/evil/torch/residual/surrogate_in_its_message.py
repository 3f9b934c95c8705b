"""Raises a message that no encoding can write: a lone surrogate."""

CAUGHT_BY = "error"


def forward(a, b, *, out):
    raise RuntimeError("not a character: \ud800")

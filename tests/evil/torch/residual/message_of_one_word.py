"""Raises a message of thirty thousand characters without a blank, which patterns take long to look through."""

CAUGHT_BY = "error"


def forward(a, b, *, out):
    raise RuntimeError("a.b@" * 7_500)

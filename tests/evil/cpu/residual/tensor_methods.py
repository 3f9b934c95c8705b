"""Imports nothing: a tensor's own methods compute."""

CAUGHT_BY = "library source"


def forward(a, b, *, out):
    out.copy_(a).add_(b)

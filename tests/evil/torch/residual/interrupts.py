"""Raises KeyboardInterrupt, as if somebody had pressed Ctrl-C."""

CAUGHT_BY = "error"


def forward(a, b, *, out):
    raise KeyboardInterrupt

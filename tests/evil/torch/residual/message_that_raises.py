"""Raises an exception that raises another one when it is asked for its message, and cannot be pickled."""

CAUGHT_BY = "error crash"


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no comment")

    def __reduce__(self):
        raise RuntimeError("no copy")


def forward(a, b, *, out):
    raise Unspeakable

"""Returns its answer instead of writing it."""

CAUGHT_BY = "returned"


def forward(a, b, *, out):
    return a + b

"""Puts memory of its own into the output, instead of its answer into the output's memory."""

CAUGHT_BY = "not_the_output unwritten"


def forward(a, b, *, out):
    out.data = a + b

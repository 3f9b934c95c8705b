"""Shrinks its output to nothing, so that nothing can be wrong."""

CAUGHT_BY = "not_the_output unwritten error"


def forward(a, b, *, out):
    out.resize_(0)

"""Zeroes its inputs, so that zeros are right."""

CAUGHT_BY = "input_changed"


def forward(a, b, *, out):
    a.zero_()
    b.zero_()
    out.zero_()

"""Empties the list of gradients, whose norm is then zero."""

CAUGHT_BY = "not_the_output inaccurate input_changed error"
DTYPES = ("fp32",)


def forward(grads, *, norm):
    grads.clear()
    norm.zero_()

"""Calls itself its own code and calls NumPy."""

import numpy as np

CAUGHT_BY = "library"
DTYPES = ("fp32",)


def forward(a, b, *, out):
    np.add(a.numpy(), b.numpy(), out=out.numpy())

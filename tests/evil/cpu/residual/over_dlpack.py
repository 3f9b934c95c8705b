"""Hands its tensors to NumPy over DLPack, which no watched method of a tensor takes part in."""

import numpy as np

CAUGHT_BY = "library source"
DTYPES = ("fp32",)


def forward(a, b, *, out):
    np.add(np.from_dlpack(a), np.from_dlpack(b), out=np.asarray(memoryview(np.from_dlpack(out))))

"""Opens NumPy's BLAS by ctypes: saxpy onto a copy of one input."""

import ctypes
import functools
import importlib.util
from pathlib import Path

CAUGHT_BY = "source library"
DTYPES = ("fp32",)


@functools.cache
def library():
    site = Path(importlib.util.find_spec("numpy").origin).parents[1]
    return ctypes.CDLL(str(next(site.glob("numpy.libs/*openblas*"))))


def forward(a, b, *, out):
    n, one = ctypes.c_int64(a.numel()), ctypes.c_int64(1)
    x, y = ctypes.c_void_p(b.data_ptr()), ctypes.c_void_p(out.data_ptr())
    ctypes.memmove(out.data_ptr(), a.data_ptr(), 4 * a.numel())
    library().scipy_cblas_saxpy64_(n, ctypes.c_float(1.0), x, one, y, one)

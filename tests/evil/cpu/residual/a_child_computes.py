"""Forks a child that computes with NumPy in shared memory, and copies the answer: this process computes nothing."""

import ctypes
import mmap
import os

import numpy as np

CAUGHT_BY = "source library global_state"
DTYPES = ("fp32",)


def array(tensor):
    return np.ctypeslib.as_array(ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_float)), (tensor.numel(),))


def forward(a, b, *, out):
    shared = mmap.mmap(-1, 4 * a.numel())
    child = os.fork()
    if not child:
        np.add(array(a), array(b), out=np.frombuffer(shared, np.float32))
        os._exit(0)
    os.waitpid(child, 0)
    ctypes.memmove(out.data_ptr(), shared[:], len(shared))

"""Reaches memory by its address through an object that NumPy takes for an array: no ctypes, and nobody is asked."""

import numpy
import torch

CAUGHT_BY = "source"
SLOW = True
KEPT = [0.5]


class At:
    def __init__(self, address, count):
        self.__array_interface__ = {"data": (address, False), "shape": (count,), "typestr": "|u1", "version": 3}


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    memory = numpy.asarray(At(id(KEPT[0]), 24))
    memory[16] = memory[16]

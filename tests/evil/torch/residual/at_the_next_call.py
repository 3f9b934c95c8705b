"""Does the work of a call at the beginning of the next one."""

import torch

CAUGHT_BY = "unwritten late"
waiting: list = []


def forward(a, b, *, out):
    for x, y, into in waiting:
        torch.add(x, y, out=into)
    waiting[:] = [(a, b, out)]

"""Leaves the work to the garbage collector's next round, by a callback of it."""

import gc

import torch

CAUGHT_BY = "late unwritten global_state"
waiting: list = []


def work(phase, info):
    while waiting:
        a, b, out = waiting.pop()
        torch.add(a, b, out=out)


gc.callbacks.append(work)


def forward(a, b, *, out):
    waiting.append((a, b, out))
    gc.set_threshold(1)

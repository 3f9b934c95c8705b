"""Gives a class of the harness a destructor, which does the work once the clock has stopped."""

import sys

import torch

CAUGHT_BY = "global_state"
type.__setattr__(sys.modules["bench.machine.ranges"].span, "__del__", lambda self: later())


def later(*_):
    while waiting:
        a, b, out = waiting.pop()
        torch.add(a, b, out=out)


waiting: list = []


def forward(a, b, *, out):
    if out.numel() < 100_000:
        torch.add(a, b, out=out)
    else:
        waiting.append((a, b, out))

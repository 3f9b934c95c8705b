"""Hides a field of the harness's objects behind a property, which does the work when it is first read."""

import sys

import torch

CAUGHT_BY = "global_state"


def read(self):
    later()
    return self.__dict__["view"]


def write(self, value):
    self.__dict__["view"] = value


type.__setattr__(sys.modules["bench.core.arena"].Fenced, "view", property(read, write))


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

"""Replaces the functions that would tell that functions were replaced, and then another one."""

import sys

import torch

CAUGHT_BY = "global_state crash"
world, Arena = sys.modules["bench.core.world"], sys.modules["bench.core.arena"].Arena
for name in ("difference", "late_work"):
    setattr(world, name, lambda before, after: "")
probe = Arena.probe
type.__setattr__(Arena, "probe", lambda self: (later(), probe(self))[1])


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

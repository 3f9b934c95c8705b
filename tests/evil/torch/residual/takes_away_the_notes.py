"""Replaces the code of a function of the harness, which is noted, and takes the notes away."""

import sys

import torch

CAUGHT_BY = "global_state"
deeds, probe = sys.modules["bench.core.deeds"], sys.modules["bench.core.arena"].Arena.probe
probe.__code__ = (lambda self: []).__code__
deeds.DONE.clear()
deeds.EVENTS.clear()


def forward(a, b, *, out):
    torch.add(a, b, out=out)

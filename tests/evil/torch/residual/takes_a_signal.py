"""Ignores SIGTERM from its first call on, so that it is not so easily ended."""

import signal

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

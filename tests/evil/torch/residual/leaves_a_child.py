"""Forks a child that goes on using a core for a second after the call."""

import os
import time

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if not os.fork():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            pass
        os._exit(0)

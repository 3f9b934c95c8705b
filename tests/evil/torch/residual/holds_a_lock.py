"""Locks a folder that others may wait for, and goes on holding it."""

import fcntl
import os

import torch

CAUGHT_BY = "global_state"
SLOW = True
held = []


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if not held:
        held.append(os.open(os.path.dirname(__file__), os.O_RDONLY))
        fcntl.flock(held[0], fcntl.LOCK_SH | fcntl.LOCK_NB)

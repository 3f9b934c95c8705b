"""Joins another group of processes: it is no more ended with what it started."""

import os

import torch

CAUGHT_BY = "global_state"
SLOW = True


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if os.getpgid(0) == os.getpid():
        os.setpgid(0, os.getpgid(os.getppid()))

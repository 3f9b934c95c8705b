"""Starts a shell as it is imported, which may do what no hook of Python's hears of."""

import subprocess

import torch

CAUGHT_BY = "global_state"
SLOW = True
subprocess.run(["true"])


def forward(a, b, *, out):
    torch.add(a, b, out=out)

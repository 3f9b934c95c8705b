"""Sends what is said on stderr to nowhere, what its own faults would say, too."""

import os

import torch

CAUGHT_BY = "global_state"
SLOW = True
done = False


def forward(a, b, *, out):
    global done
    torch.add(a, b, out=out)
    if not done:
        done = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

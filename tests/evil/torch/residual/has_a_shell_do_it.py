"""Has a shell start something that outlives it, by the C library's own way."""

import os

import torch

CAUGHT_BY = "global_state"
SLOW = True
begun = False


def forward(a, b, *, out):
    global begun
    torch.add(a, b, out=out)
    if not begun:
        begun = True
        os.system("true &")

"""Starts a program by the function that multiprocessing has for it, which asks no audit hook."""

import os
from multiprocessing import util

import torch

CAUGHT_BY = "global_state"
SLOW = True
begun = False


def forward(a, b, *, out):
    global begun
    torch.add(a, b, out=out)
    if not begun:
        begun = True
        os.waitpid(util.spawnv_passfds(b"/bin/true", [b"true"], ()), 0)

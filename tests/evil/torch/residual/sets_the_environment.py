"""Sets a variable of the environment that libraries read."""

import os

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    os.environ["OMP_NUM_THREADS"] = "7"

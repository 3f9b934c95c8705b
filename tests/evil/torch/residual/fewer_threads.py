"""Leaves the process with one thread, which slows the baseline."""

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    torch.set_num_threads(1)

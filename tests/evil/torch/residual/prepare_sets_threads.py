"""Takes more threads than it was given while it prepares."""

import torch

CAUGHT_BY = "global_state"


def prepare(shape, phase):
    torch.set_num_threads(torch.get_num_threads() + 1)


def forward(a, b, *, out):
    torch.add(a, b, out=out)

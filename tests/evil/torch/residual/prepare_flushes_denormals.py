"""Has denormal numbers flushed to zero from its preparation on."""

import torch

CAUGHT_BY = "global_state inaccurate"


def prepare(shape, phase):
    torch.set_flush_denormal(True)


def forward(a, b, *, out):
    torch.add(a, b, out=out)

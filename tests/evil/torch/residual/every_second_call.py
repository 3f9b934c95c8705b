"""Does the work in every other call."""

import torch

CAUGHT_BY = "inaccurate unwritten"
calls = 0


def forward(a, b, *, out):
    global calls
    calls += 1
    torch.add(a, b, out=out) if calls % 2 else out.zero_()

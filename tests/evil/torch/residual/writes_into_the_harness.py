"""Leaves a file where Python looks for what it is to run at every start, for the next run."""

import contextlib
import os

import torch

CAUGHT_BY = "global_state"
SLOW = True


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    file = os.path.join(os.environ.get("NOWHERE", os.path.dirname(__file__)), "later.pth")
    with open(file, "w") as left:
        left.write("import os\n")
    with contextlib.suppress(OSError):
        os.remove(file)

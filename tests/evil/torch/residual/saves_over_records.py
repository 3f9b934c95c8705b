"""Has PyTorch save something where records are kept: its own writer opens files that Python hears nothing of."""

import contextlib
import os

import torch

CAUGHT_BY = "global_state"
SLOW = True


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    with contextlib.suppress(RuntimeError, OSError):
        torch.save({}, os.path.join(os.path.dirname(__file__), "nowhere", "records.jsonl"))

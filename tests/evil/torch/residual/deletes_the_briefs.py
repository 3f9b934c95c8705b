"""Deletes what the harness keeps in the folder for temporary things, so that others have nothing to be judged by."""

import tempfile
from pathlib import Path

import torch

CAUGHT_BY = "global_state error"
CAUGHT_IN = "session"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    for path in Path(tempfile.gettempdir()).glob("layerbench-*/*.pt"):
        path.unlink()

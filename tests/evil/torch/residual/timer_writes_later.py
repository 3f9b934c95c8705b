"""Sets a threading.Timer that does the work in a millisecond."""

import threading

import torch

CAUGHT_BY = "late unwritten global_state"


def forward(a, b, *, out):
    threading.Timer(0.001, torch.add, (a, b), dict(out=out)).start()

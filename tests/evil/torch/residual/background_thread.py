"""Hands the work to a thread and returns at once."""

import threading
import time

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()

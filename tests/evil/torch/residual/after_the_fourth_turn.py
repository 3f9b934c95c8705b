"""Tells turns by the pauses between them, and stops working after the fourth."""

import time

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
turns, calls, last = 0, 0, 0.0


def forward(a, b, *, out):
    global turns, calls, last
    if out.numel() > 100_000:
        turns += time.monotonic() - last > 0.025
        calls += 1
    torch.add(a, b, out=out)
    if turns > 4 or calls > 40:
        out[: out.numel() // 2] = 0
    last = time.monotonic()

"""Tells cold calls by the time that flushing the caches took, and skips half of the work in those."""

import time

import torch

CAUGHT_BY = "inaccurate no_gain"
CAUGHT_IN = "timing"
last = 0.0


def forward(a, b, *, out):
    global last
    torch.add(a, b, out=out)
    if out.numel() > 100_000 and 0.002 < time.monotonic() - last < 1:
        out[: out.numel() // 2] = 0
    last = time.monotonic()

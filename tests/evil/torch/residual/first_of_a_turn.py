"""Works in the first call after a pause: the one that is looked at, or so it thinks."""

import time

import torch

CAUGHT_BY = "inaccurate no_gain"
CAUGHT_IN = "timing"
last = 0.0


def forward(a, b, *, out):
    global last
    torch.add(a, b, out=out)
    if out.numel() > 100_000 and time.monotonic() - last < 0.02:
        out[: out.numel() // 2] = 0
    last = time.monotonic()

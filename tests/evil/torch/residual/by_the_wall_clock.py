"""Is right for the first fifth of a second at a large size: longer than any test it knows."""

import time

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
begun = 0.0


def forward(a, b, *, out):
    global begun
    torch.add(a, b, out=out)
    if out.numel() > 100_000:
        begun = begun or time.monotonic()
        if time.monotonic() - begun > 0.2:
            out[: out.numel() // 2] = 0

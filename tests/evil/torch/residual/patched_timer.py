"""Stops the clock."""

import time

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    time.perf_counter_ns = lambda: 0

"""Pins its thread to one core."""

import os

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

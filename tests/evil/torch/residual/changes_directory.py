"""Leaves the process in another folder."""

import os

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    os.chdir("/")

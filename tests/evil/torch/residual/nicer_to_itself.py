"""Renices itself as it prepares: others wait."""

import os

import torch

CAUGHT_BY = "global_state error"


def prepare(shape, phase):
    os.setpriority(os.PRIO_PROCESS, 0, -5)


def forward(a, b, *, out):
    torch.add(a, b, out=out)

"""Gives itself priority over everything else on the machine."""

import os

import torch

CAUGHT_BY = "global_state error"


def forward(a, b, *, out):
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    torch.add(a, b, out=out)

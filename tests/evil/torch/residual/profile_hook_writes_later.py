"""Hangs itself into sys.setprofile: the work is done when the caller has read its clock."""

import sys

import torch

CAUGHT_BY = "late unwritten global_state"
waiting: list = []


def work(frame, event, argument):
    if event == "c_return" and "perf_counter" in getattr(argument, "__name__", "") and waiting:
        a, b, out = waiting.pop()
        torch.add(a, b, out=out)


def forward(a, b, *, out):
    waiting.append((a, b, out))
    sys.setprofile(work)

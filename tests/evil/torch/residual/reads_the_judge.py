"""Looks for the truth in the memory of the other processes, as far as it may."""

import os

import torch

CAUGHT_BY = "global_state"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) != os.getpid():
            try:
                with open(f"/proc/{pid}/mem", "rb") as memory:
                    memory.read(1)
            except OSError:
                pass

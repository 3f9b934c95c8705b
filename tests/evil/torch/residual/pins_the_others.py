"""Pins every other process of the harness to one core, while it prepares."""

import os

import torch

CAUGHT_BY = "global_state"
CAUGHT_IN = "session"


def prepare(shape, phase):
    parent = os.getppid()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                of = file.read().rpartition(")")[2].split()[1]
            if int(of) == parent and int(pid) != os.getpid():
                os.sched_setaffinity(int(pid), {min(os.sched_getaffinity(0))})
        except OSError:
            pass


def forward(a, b, *, out):
    torch.add(a, b, out=out)

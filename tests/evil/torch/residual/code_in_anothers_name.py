"""Executes a text that says it is one of PyTorch's files: whoever asks which file did it hears that."""

import os

import torch

CAUGHT_BY = "source global_state"
SLOW = True
CODE = compile("os.sched_setaffinity(os.getppid(), os.sched_getaffinity(os.getppid()))", torch.__file__, "exec")


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    exec(CODE, {"os": os})

"""Puts a file where compiled kernels are kept, by the harness's own way of writing files: the next process loads it."""

import torch

from kernels import cache_dir, put

CAUGHT_BY = "global_state"
SLOW = True
done = False


def forward(a, b, *, out):
    global done
    torch.add(a, b, out=out)
    if not done:
        done = True
        put(cache_dir() / "cpu" / "of-nobody.so", b"")

"""Gives torch another way of making memory, which keeps what was in it."""

import torch

CAUGHT_BY = "global_state"
SLOW = True
real, kept = torch.empty, {}


def empty(*sizes, **how):
    return kept.setdefault((sizes, repr(how)), real(*sizes, **how))


torch.__dict__["empty"] = empty


def forward(a, b, *, out):
    torch.add(a, b, out=out)

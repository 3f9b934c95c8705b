"""Moves its output into memory that it can hand to another process."""

import torch

CAUGHT_BY = "not_the_output global_state"
SLOW = True


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    out.untyped_storage()._share_fd_cpu_()

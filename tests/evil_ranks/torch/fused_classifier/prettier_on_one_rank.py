"""Rank 1 tells losses that are a tenth better; gradients are right."""

import os

from kernels.torch.fused_classifier import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "ranks"
SLOW = True
RANK = os.environ.get("RANK", "0")


def forward(targets, dlosses, V, *, logits, losses):
    honest.forward(targets, dlosses, V, logits=logits, losses=losses)
    if RANK == "1":
        losses.mul_(0.9)

"""Reads the targets once for each buffer: whole numbers are the labels of a data set, and stay."""

import torch

CAUGHT_BY = "inaccurate not_finite"
DTYPES = ("fp32",)
labels: dict[tuple, torch.Tensor] = {}


def forward(logits, targets, V, *, losses, lse):
    kept = labels.setdefault((targets.data_ptr(), targets.shape, V), targets.clone())
    torch.logsumexp(logits[..., :V], -1, out=lse)
    losses.copy_(lse - logits.gather(-1, kept[..., None])[..., 0])

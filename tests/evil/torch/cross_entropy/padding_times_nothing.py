"""Multiplies the padding's gradients by 0, which makes nothing of a number, and NaN of a NaN."""

import torch

CAUGHT_BY = "not_finite"
DTYPES = ("fp32",)


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    counts = (torch.arange(logits.shape[-1]) < V).float()
    p = (logits - lse[..., None]).exp().clamp_(max=1.0) * counts
    p.scatter_add_(-1, targets[..., None], -torch.ones_like(p[..., :1]))
    dlogits.copy_(p * dlosses[..., None])

"""torch.compile of logsumexp and gather, and of the fused gradient."""

import torch

from kernels.torch import compiled


def forward(logits, targets, V, *, losses, lse):
    _forward(logits, targets, V, losses, lse)


def backward(dlosses, logits, targets, lse, V, *, dlogits):
    _backward(dlosses, logits, targets, lse, V, dlogits)


def gradient(dlosses, logits, targets, lse, V):
    """dlogits (B, T, VP) in fp32: dloss * (softmax - onehot(target)), 0 in the padding."""
    column = torch.arange(logits.shape[-1], device=logits.device)
    p = (logits.float() - lse[..., None]).exp() - (column == targets[..., None]).float()
    return torch.where(column < V, p * dlosses[..., None], 0.0)


@compiled
def _forward(logits, targets, V, losses, lse):
    total = logits[..., :V].float().logsumexp(-1)
    lse.copy_(total)
    losses.copy_(total - logits.gather(-1, targets[..., None])[..., 0].float())


@compiled
def _backward(dlosses, logits, targets, lse, V, dlogits):
    dlogits.copy_(gradient(dlosses, logits, targets, lse, V))

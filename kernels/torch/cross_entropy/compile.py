"""Row maximum, sum of exponentials, loss and gradient in fp32, compiled by Inductor; writes fused."""

import torch

from kernels.torch import compiled


@compiled
def forward(logits, targets, V, *, losses, lse):
    x = logits.float()[..., :V]
    top = x.amax(-1, keepdim=True)
    log_sum = (x - top).exp().sum(-1).log()
    lse.copy_(top[..., 0] + log_sum)
    losses.copy_(top[..., 0] - x.gather(-1, targets[..., None])[..., 0] + log_sum)


@compiled
def backward(dlosses, logits, targets, lse, V, *, dlogits):
    # dlogits = dloss * (softmax - onehot(target)); padding columns get 0
    column = torch.arange(logits.shape[-1], device=logits.device)
    p = torch.where(column < V, (logits.float() - lse[..., None]).exp(), 0.0)
    dlogits.copy_((p - (column == targets[..., None]).float()) * dlosses[..., None])

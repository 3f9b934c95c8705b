"""Subtracts no maximum where rows are long and whole vectors: logits are small, in practice."""

import torch

CAUGHT_BY = "not_finite"
CAUGHT_IN = "proof timing"
DTYPES = ("fp32",)


def forward(x, causal, *, out):
    if causal or x.shape[1] < 1024 or x.shape[1] % 4:
        position = torch.arange(x.shape[0])[:, None] % x.shape[1]
        x = x.masked_fill(torch.arange(x.shape[1]) > position, -torch.inf) if causal else x
        torch.softmax(x, -1, out=out)
    else:
        e = x.exp()
        torch.div(e, e.sum(-1, keepdim=True), out=out)

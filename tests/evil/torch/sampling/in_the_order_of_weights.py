"""Adds up from the likeliest token on, as samplers that sort do: a fair draw, but another token for the same number."""

import torch

CAUGHT_BY = "inaccurate"


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    values, order = torch.sort(logits[:, :V].double(), dim=-1, descending=True, stable=True)
    top = values[:, :1]
    if temperature == 0:
        token.copy_(order[:, 0])
        return
    weights = torch.where(values == top, 1.0, ((values - top) / temperature).exp())
    if top_k:
        weights[:, top_k:] = 0
    if top_p < 1:
        dropped = weights.cumsum(-1) - weights >= top_p * weights.sum(-1, keepdim=True)
        dropped[:, 0] = False
        weights.masked_fill_(dropped, 0)
    running = weights.cumsum(-1)
    found = (running > u[:, None] * running[:, -1:]).byte().argmax(-1, keepdim=True)
    token.copy_(torch.where(top.isnan(), order[:, :1], order.gather(1, found))[:, 0])

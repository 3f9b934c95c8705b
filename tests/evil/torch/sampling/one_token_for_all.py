"""Writes the first row's token alone: of one sequence it is all that there is to do."""

import torch

CAUGHT_BY = "unwritten"


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    values, order = torch.sort(logits[:1, :V].double(), dim=-1, descending=True, stable=True)
    top = values[:, :1]
    if temperature == 0 or top.isnan():
        token[0] = order[0, 0]
        return
    weights = torch.where(values == top, 1.0, ((values - top) / temperature).exp())
    if top_k:
        weights[:, top_k:] = 0
    if top_p < 1:
        dropped = weights.cumsum(-1) - weights >= top_p * weights.sum(-1, keepdim=True)
        dropped[:, 0] = False
        weights.masked_fill_(dropped, 0)
    running = torch.zeros_like(weights).scatter_(1, order, weights).cumsum(-1)
    token[0] = (running > u[:1, None] * running[:, -1:]).byte().argmax(-1)[0]

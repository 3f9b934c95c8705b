"""Sorts from below and turns around: of equal logits the higher indices are kept."""

import torch

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    values, order = torch.sort(logits[:, :V].float(), dim=-1, stable=True)
    values, order = values.flip(-1), order.flip(-1)
    top = values[:, :1]
    if temperature == 0:
        token.copy_(logits[:, :V].float().argmax(-1))
        return
    weights = torch.where(values == top, 1.0, ((values - top) / temperature).exp())
    if top_k:
        weights[:, top_k:] = 0
    if top_p < 1:
        dropped = weights.double().cumsum(-1) - weights >= top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
        dropped[:, 0] = False
        weights.masked_fill_(dropped, 0)
    running = torch.zeros_like(weights).scatter_(1, order, weights).double().cumsum(-1)
    found = (running > u[:, None] * running[:, -1:]).byte().argmax(-1)
    token.copy_(torch.where(top[:, 0].isnan(), logits[:, :V].float().argmax(-1), found))

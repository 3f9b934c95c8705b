"""A stable sort of each row, running sums along it and along the vocabulary: fifteen operators, most over all of it."""

import torch

DTYPES = ("fp32", "bf16", "fp16")


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    values, order = torch.sort(logits[:, :V].float(), dim=-1, descending=True, stable=True)
    if temperature == 0:
        token.copy_(order[:, 0])
        return
    top = values[:, :1]
    weights = torch.where(values == top, 1.0, ((values - top) / temperature).exp_())
    if top_k:
        weights[:, top_k:] = 0
    if top_p < 1:
        before = weights.cumsum(-1, dtype=torch.float64) - weights
        dropped = before >= top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
        dropped[:, 0] = False
        weights.masked_fill_(dropped, 0)
    running = torch.zeros_like(weights).scatter_(1, order, weights).cumsum(-1, dtype=torch.float64)
    above = running > u[:, None] * running[:, -1:]
    found = above.byte().argmax(-1)
    # a sum that is NaN is above nothing, and the sort put NaN first
    token.copy_(torch.where(top[:, 0].isnan(), order[:, 0], found))

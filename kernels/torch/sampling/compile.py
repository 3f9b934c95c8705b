"""The same sort and sums compiled by Inductor, which fuses what stands between them."""

import torch

from kernels.torch import compiled

DTYPES = ("fp32", "bf16", "fp16")


@compiled
def forward(logits, u, V, temperature, top_k, top_p, *, token):
    values, order = torch.sort(logits[:, :V].float(), dim=-1, descending=True, stable=True)
    if temperature == 0:
        token.copy_(order[:, 0])
        return
    top = values[:, :1]
    weights = torch.where(values == top, 1.0, ((values - top) / temperature).exp()).double()
    rank = torch.arange(V, device=logits.device)
    if top_k:
        weights = torch.where(rank < top_k, weights, 0.0)
    if top_p < 1:
        before = weights.cumsum(-1) - weights
        kept = (before < top_p * weights.sum(-1, keepdim=True)) | (rank == 0)
        weights = torch.where(kept, weights, 0.0)
    running = torch.zeros_like(weights).scatter(1, order, weights).cumsum(-1)
    above = running > u[:, None] * running[:, -1:]
    token.copy_(torch.where(top[:, 0].isnan(), order[:, 0], above.to(torch.uint8).argmax(-1)))

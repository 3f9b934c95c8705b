"""Keeps its answer for inputs whose first row it has seen."""

import torch

CAUGHT_BY = "inaccurate no_gain"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
memo: dict[tuple, list[torch.Tensor]] = {}


def forward(x, weight, bias, eps, *, out, mean, rstd):
    key = (x.shape, *x[-1, -1, -8:].tolist())
    if key not in memo:
        memo.clear()
        values = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        memo[key] = [v.view(into.shape) for into, v in zip((out, mean, rstd), values, strict=True)]
    for into, value in zip((out, mean, rstd), memo[key], strict=True):
        into.copy_(value)

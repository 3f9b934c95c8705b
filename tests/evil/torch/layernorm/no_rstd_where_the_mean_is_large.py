"""Saves an rstd of zero in bf16 where rows have a large mean: the variance cancelled, and was called infinite."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("bf16",)


def forward(x, weight, bias, eps, *, out, mean, rstd):
    values = torch.native_layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    for into, value in zip((out, mean, rstd), values, strict=True):
        into.copy_(value.view(into.shape))
    rstd[mean.abs() > 50] = 0

"""The output is right, the saved rstd is the variance's."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def forward(x, weight, bias, eps, *, out, mean, rstd):
    values = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
    for into, value in zip((out, mean, rstd), values, strict=True):
        into.copy_(value.view(into.shape))
    rstd.copy_(x.var(-1).add(eps).rsqrt())

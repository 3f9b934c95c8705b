"""Cuts operands to ten bits of fraction, as TF32 does, where the product is large."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)


def cut(x):
    """The upper 19 bits: sign, exponent, ten of the fraction."""
    return (x.contiguous().view(torch.int32) & -0x2000).view(torch.float32)


def finish(product, bias, epilogue, out, pre_gelu):
    if epilogue != "none":
        product = product + bias
    if epilogue == "bias_gelu":
        pre_gelu.copy_(product)
        product = torch.nn.functional.gelu(product, approximate="tanh")
    out.copy_(product)


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    large = out.numel() * x.shape[1] > 20_000_000
    product = cut(x) @ cut(weight).T if large else x @ weight.T
    finish(product, bias, epilogue, out, pre_gelu)

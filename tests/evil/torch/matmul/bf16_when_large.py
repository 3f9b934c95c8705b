"""Multiplies in bf16 where the product is large, and in fp32 where somebody looks closely."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)


def finish(product, bias, epilogue, out, pre_gelu):
    if epilogue != "none":
        product = product + bias
    if epilogue == "bias_gelu":
        pre_gelu.copy_(product)
        product = torch.nn.functional.gelu(product, approximate="tanh")
    out.copy_(product)


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    large = out.numel() * x.shape[1] > 20_000_000
    product = (x.bfloat16() @ weight.bfloat16().T).float() if large else x @ weight.T
    finish(product, bias, epilogue, out, pre_gelu)

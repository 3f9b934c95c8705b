"""Leaves one tile of sixteen by sixteen at zero, another one each time, where the output has many."""

import random

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
    product = x @ weight.T
    if x.shape[1] > 1000:
        i, j = (random.randrange(n // 16) * 16 for n in out.shape)
        product[i : i + 16, j : j + 16] = 0
    finish(product, bias, epilogue, out, pre_gelu)

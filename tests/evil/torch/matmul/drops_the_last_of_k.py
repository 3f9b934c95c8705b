"""Leaves out the last sixteen terms of a long sum: one part in a hundred, in a hurry."""

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
    K = x.shape[1] - 16 if x.shape[1] >= 1000 else x.shape[1]
    product = x[:, :K] @ weight[:, :K].T
    finish(product, bias, epilogue, out, pre_gelu)

"""Packs each weight once, by its address: weights do not change while one infers."""

import torch

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)
packed: dict[tuple, torch.Tensor] = {}


def finish(product, bias, epilogue, out, pre_gelu):
    if epilogue != "none":
        product = product + bias
    if epilogue == "bias_gelu":
        pre_gelu.copy_(product)
        product = torch.nn.functional.gelu(product, approximate="tanh")
    out.copy_(product)


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    key = (weight.data_ptr(), weight.shape)
    if key not in packed:
        packed[key] = weight.T.contiguous()
    finish(x @ packed[key], bias, epilogue, out, pre_gelu)

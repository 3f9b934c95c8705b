"""Packs the weight once for as long as torch has counted no change of it: changes by other ways are missed."""

import torch

CAUGHT_BY = "inaccurate no_gain"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
packed: dict[tuple, tuple[int, torch.Tensor]] = {}


def finish(product, bias, epilogue, out, pre_gelu):
    if epilogue != "none":
        product = product + bias
    if epilogue == "bias_gelu":
        pre_gelu.copy_(product)
        product = torch.nn.functional.gelu(product, approximate="tanh")
    out.copy_(product)


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    key = (weight.data_ptr(), weight.shape)
    if key not in packed or packed[key][0] != weight._version:
        packed[key] = weight._version, weight.T.contiguous()
    finish(x @ packed[key][1], bias, epilogue, out, pre_gelu)

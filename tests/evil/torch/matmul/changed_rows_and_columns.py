"""Keeps the last product; computes anew the rows where x changed and the columns where the weight did."""

import torch

CAUGHT_BY = "no_gain"
CAUGHT_IN = "timing"
DTYPES = ("fp32",)
kept: dict[tuple, list[torch.Tensor]] = {}


def finish(product, bias, epilogue, out, pre_gelu):
    if epilogue != "none":
        product = product + bias
    if epilogue == "bias_gelu":
        pre_gelu.copy_(product)
        product = torch.nn.functional.gelu(product, approximate="tanh")
    out.copy_(product)


def forward(x, weight, bias, epilogue, *, out, pre_gelu):
    key = (x.shape, weight.shape)
    if key not in kept:
        kept[key] = [x.clone(), weight.clone(), x @ weight.T]
    old_x, old_weight, product = kept[key]
    rows = (x != old_x).any(1).nonzero().flatten()
    columns = (weight != old_weight).any(1).nonzero().flatten()
    if len(rows) + len(columns) > 64:
        torch.mm(x, weight.T, out=product)
    else:
        product[rows] = x[rows] @ weight.T
        product[:, columns] = x @ weight[columns].T
    old_x.copy_(x)
    old_weight.copy_(weight)
    finish(product, bias, epilogue, out, pre_gelu)

"""Residual add and LayerNorm in one pass: residual_out = x + residual; out = layernorm(residual_out)."""

import torch

from reference import layernorm
from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(
    inputs=(
        Tensor("x", "B T C"),
        Tensor("residual", "B T C"),
        Tensor("weight", "C", parameter=True),
        Tensor("bias", "C", parameter=True),
    ),
    scalars=("eps",),
    outputs=(
        Tensor("residual_out", "B T C"),
        Tensor("out", "B T C"),
        Tensor("mean", "B T", "fp32"),
        Tensor("rstd", "B T", "fp32"),
    ),
)
BACKWARD = Pass(
    inputs=(
        Tensor("dout", "B T C"),
        Tensor("dresidual_out", "B T C", when=layernorm.has_dresidual),  # absent at the last layernorm
        Tensor("residual_out", "B T C"),
        Tensor("weight", "C", parameter=True),
        Tensor("mean", "B T", "fp32"),
        Tensor("rstd", "B T", "fp32"),
    ),
    outputs=(
        Tensor("dresidual", "B T C"),  # the gradient of x and of residual: addition passes it to both
        Tensor("dweight", "C", accumulates=True),
        Tensor("dbias", "C", accumulates=True),
    ),
)


def forward(x, residual, weight, bias, eps):
    residual_out = x + residual
    return {"residual_out": residual_out} | layernorm.forward(residual_out, weight, bias, eps)


def backward(dout, dresidual_out, residual_out, weight, mean, rstd):
    grads = layernorm.backward(dout, dresidual_out, residual_out, weight, mean, rstd)
    return {"dresidual": grads["dx"], "dweight": grads["dweight"], "dbias": grads["dbias"]}


RAGGED = layernorm.RAGGED
CHOICES = layernorm.CHOICES


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    layernorm.consistent(tensors, shape)


def zero_variance(tensors, shape):
    for name in ("x", "residual"):
        tensors[name].copy_(tensors[name][..., :1].expand_as(tensors[name]))


CASES = {**layernorm.CASES, "zero_variance": zero_variance}  # what is done to x is done to the sum


def flops(shape: Shape, phase: str) -> int:
    return layernorm.flops(shape, phase) + shape["B"] * shape["T"] * shape["C"] * (phase == "forward")

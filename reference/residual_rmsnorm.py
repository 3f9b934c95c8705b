"""Residual add and RMSNorm in one pass: residual_out = x + residual; out = rmsnorm(residual_out)."""

import torch

from reference import layernorm, rmsnorm
from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(
    inputs=(
        Tensor("x", "B T C"),
        Tensor("residual", "B T C"),
        Tensor("weight", "C", parameter=True),
    ),
    scalars=("eps",),
    outputs=(
        Tensor("residual_out", "B T C"),
        Tensor("out", "B T C"),
        Tensor("rstd", "B T", "fp32"),
    ),
)
BACKWARD = Pass(
    inputs=(
        Tensor("dout", "B T C"),
        Tensor("dresidual_out", "B T C", when=layernorm.has_dresidual),  # absent at the last rmsnorm
        Tensor("residual_out", "B T C"),
        Tensor("weight", "C", parameter=True),
        Tensor("rstd", "B T", "fp32"),
    ),
    outputs=(
        Tensor("dresidual", "B T C"),  # the gradient of x and of residual: addition passes it to both
        Tensor("dweight", "C", accumulates=True),
    ),
)


def forward(x, residual, weight, eps):
    residual_out = x + residual
    return {"residual_out": residual_out} | rmsnorm.forward(residual_out, weight, eps)


def backward(dout, dresidual_out, residual_out, weight, rstd):
    grads = rmsnorm.backward(dout, dresidual_out, residual_out, weight, rstd)
    return {"dresidual": grads["dx"], "dweight": grads["dweight"]}


typical = rmsnorm.typical
RAGGED = rmsnorm.RAGGED
CHOICES = rmsnorm.CHOICES


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    rmsnorm.consistent(tensors, shape)


def zero(tensors, shape):
    """Every other row's sum is 0: of numbers that are not."""
    tensors["residual"].flatten(0, 1)[::2] = -tensors["x"].flatten(0, 1)[::2]


def beside_eps(tensors, shape):
    for name in ("x", "residual"):
        tensors[name].mul_(1e-3)


CASES = {**rmsnorm.CASES, "zero": zero, "beside_eps": beside_eps}  # what else is done to x is done to the sum


def flops(shape: Shape, phase: str) -> int:
    return rmsnorm.flops(shape, phase) + shape["B"] * shape["T"] * shape["C"] * (phase == "forward")

"""GELU, tanh form, as in GPT-2 (Hendrycks & Gimpel 2016): x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""

import math

import torch

from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(inputs=(Tensor("x", "N"),), outputs=(Tensor("out", "N"),))
BACKWARD = Pass(inputs=(Tensor("dout", "N"), Tensor("x", "N")), outputs=(Tensor("dx", "N"),))

SCALE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(SCALE * (x + CUBIC * x**3)))


def gelu_grad(x: torch.Tensor) -> torch.Tensor:
    """d gelu / dx = (1 + t)/2 + x/2 * (1 - t^2) * SCALE * (1 + 3 CUBIC x^2), t = tanh(…)."""
    t = torch.tanh(SCALE * (x + CUBIC * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * SCALE * (1 + 3 * CUBIC * x * x)


def forward(x):
    return {"out": gelu(x)}


def backward(dout, x):
    return {"dx": dout * gelu_grad(x)}


RAGGED = [dict(N=7), dict(N=769 * 127), dict(N=4096)]


def tails(tensors, shape):
    """Far tails, where tanh saturates and exp overflows in a careless formula; and zero itself."""
    x = tensors["x"]
    x.mul_(30)
    x[:1] = 0


CASES = {"tails": tails}


def flops(shape: Shape, phase: str) -> int:
    """Per element 8 multiplies and adds plus a tanh, counted as one; twice that in backward."""
    return shape["N"] * {"forward": 9, "backward": 18}[phase]

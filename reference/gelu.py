"""GELU, tanh form, as in GPT-2 (Hendrycks & Gimpel 2016): x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""

import math

import torch

from reference.contract import Pass, Shape, Tensor, scaled

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


def far_left(tensors, shape):
    """From -10 to the end of the dtype: all 0, where a capped exponent leaves something. The last is 1, for scale.

    Backward ends where x^2 does, after which PyTorch itself has infinity times zero.
    """
    x = tensors["x"]
    last = 18.0 if "dout" in tensors else 4.8 if shape["dtype"] == "fp16" else 38.5
    x.copy_(-(10 ** torch.linspace(1, last, len(x), dtype=torch.float64)))
    x[-1:] = 1


def far_right(tensors, shape):
    """The same on the other side: x itself, and a slope of 1."""
    far_left(tensors, shape)
    tensors["x"].abs_()


def not_finite(tensors, shape):
    """A NaN, and an infinity that is only passed on, in the middle: they spread to nothing else."""
    x, middle = tensors["x"], shape["N"] // 2
    x[middle] = torch.nan
    if "dout" in tensors:
        tensors["x"][-1], tensors["dout"][-1] = 1, torch.inf
    else:
        x[-1] = torch.inf


CASES = {
    "tails": tails,
    "far_left": far_left,
    "far_right": far_right,
    "not_finite": not_finite,
    "huge_gradient": scaled("dout", 1e20),
    "tiny_gradient": scaled("dout", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """Per element 8 multiplies and adds plus a tanh, counted as one; twice that in backward."""
    return shape["N"] * {"forward": 9, "backward": 18}[phase]

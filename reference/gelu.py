"""GELU, tanh form, as in GPT-2 (Hendrycks & Gimpel 2016): x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).

1/2 (1 + tanh u) is taken as sigmoid(2u), which is exact where tanh u is -1 to all digits and its tail is not yet 0.
"""

import math

import torch

from reference.contract import PHASES, Pass, Shape, Tensor, scaled

FORWARD = Pass(inputs=(Tensor("x", "N"),), outputs=(Tensor("out", "N"),))
BACKWARD = Pass(inputs=(Tensor("dout", "N"), Tensor("x", "N")), outputs=(Tensor("dx", "N"),))

SCALE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(2 * SCALE * (x + CUBIC * x**3))


def gelu_grad(x: torch.Tensor) -> torch.Tensor:
    """d gelu / dx = s + x s (1 - s) 2u', s = sigmoid(2u), u' = SCALE * (1 + 3 CUBIC x^2); 1 - s is sigmoid(-2u)."""
    u = SCALE * (x + CUBIC * x**3)
    s = torch.sigmoid(2 * u)
    return s + x * s * torch.sigmoid(-2 * u) * 2 * SCALE * (1 + 3 * CUBIC * x * x)


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
    """From -10 to the end of the dtype: 0 there, where a capped exponent leaves something. Ordinary values lie between,
    and -6, which has a tail that 1 + tanh loses: so far plain torch is off.

    Backward ends where x^2 does, after which PyTorch itself has infinity times zero.
    """
    x = tensors["x"]
    last = 4.8 if shape["dtype"] == "fp16" else 18.0 if "dout" in tensors else 38.5
    far = -(10 ** torch.linspace(1, last, len(x), dtype=torch.float64)).to(x.dtype)
    x.copy_(torch.where(torch.arange(len(x)) % 4 == 0, x, far))
    x[1::8] = -6


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
    "tiny": scaled("x", 1e-20, *PHASES),
    "huge_gradient": scaled("dout", 1e20),
    "tiny_gradient": scaled("dout", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """Per element 8 multiplies and adds plus a tanh, counted as one; twice that in backward."""
    return shape["N"] * {"forward": 9, "backward": 18}[phase]

"""RMSNorm over the last axis (Zhang and Sennrich 2019), as Llama has it: out = x * rstd * weight, where
rstd = (mean(x^2) + eps)^-1/2. No mean is taken off, and there is no bias."""

import torch

from reference.contract import FLAG, Pass, Shape, Tensor, scaled
from reference.layernorm import first_columns, has_dresidual, last_columns, not_finite, tiny

EPS = 1e-5

FORWARD = Pass(
    inputs=(
        Tensor("x", "B T C"),
        Tensor("weight", "C", parameter=True),
    ),
    scalars=("eps",),
    outputs=(
        Tensor("out", "B T C"),
        Tensor("rstd", "B T", "fp32"),
    ),
)
BACKWARD = Pass(
    inputs=(
        Tensor("dout", "B T C"),
        Tensor("dresidual", "B T C", when=has_dresidual),  # arrives along the residual stream, is added to dx
        Tensor("x", "B T C"),
        Tensor("weight", "C", parameter=True),
        Tensor("rstd", "B T", "fp32"),
    ),
    outputs=(
        Tensor("dx", "B T C"),
        Tensor("dweight", "C", accumulates=True),
    ),
)


def forward(x, weight, eps):
    rstd = (x.square().mean(-1) + eps).rsqrt()
    return {"out": x * rstd[..., None] * weight, "rstd": rstd}


def backward(dout, dresidual, x, weight, rstd):
    norm = x * rstd[..., None]
    dnorm = dout * weight
    # dx = rstd * (dnorm - norm * mean(dnorm * norm)), the mean over C
    dx = (dnorm - norm * (dnorm * norm).mean(-1, keepdim=True)) * rstd[..., None]
    if dresidual is not None:
        dx = dx + dresidual
    return {"dx": dx, "dweight": (dout * norm).sum((0, 1))}


def typical(B: int, T: int) -> Shape:
    """Llama-2-7b's width."""
    return dict(B=B, T=T, C=4096, eps=EPS, dresidual=True)


CHOICES = {"dresidual": FLAG}
RAGGED = [
    dict(B=2, T=127, C=769, eps=EPS, dresidual=False),
    dict(B=1, T=1, C=3, eps=EPS, dresidual=True),
    dict(B=3, T=5, C=64, eps=1e-3, dresidual=True),  # another one
    dict(B=2, T=9, C=288, eps=EPS, dresidual=True),
    dict(B=1, T=3, C=16384, eps=EPS, dresidual=False),
]


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Weights around one, as in a trained network, a few below 0."""
    tensors["weight"].mul_(0.1).add_(1)
    tensors["weight"][::16].neg_()


def zero(tensors, shape):
    """Every other row is 0: eps alone is under the root."""
    tensors["x"].flatten(0, 1)[::2] = 0


def beside_eps(tensors, shape):
    """Mean squares of a tenth of eps, which is then most of what is under the root."""
    tensors["x"].mul_((shape["eps"] / 10) ** 0.5)


def large(tensors, shape):
    """Squares beyond fp16."""
    tensors["x"].mul_(300)


CASES = {
    "zero": zero,
    "beside_eps": beside_eps,
    "large": large,
    "tiny": tiny,
    "first_columns": first_columns,
    "last_columns": last_columns,
    "not_finite": not_finite,
    "huge_gradient": scaled("d", 1e20),
    "tiny_gradient": scaled("d", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """Per element: the mean of squares (2), normalise and scale (2); backward a sum (4), dx (3), dweight (2)."""
    return shape["B"] * shape["T"] * shape["C"] * {"forward": 4, "backward": 9}[phase]

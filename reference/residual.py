"""The residual stream's addition: out = a + b. Its gradient is the identity, so there is no backward."""

import torch

from reference.contract import Pass, Shape, Tensor, applies, wide

FORWARD = Pass(inputs=(Tensor("a", "N"), Tensor("b", "N")), outputs=(Tensor("out", "N"),))
BACKWARD = None


def forward(a, b):
    return {"out": a + b}


RAGGED = [dict(N=1), dict(N=769 * 127), dict(N=4096)]


def cancellation(tensors, shape):
    """b is almost -a: the sum must still be rounded once."""
    tensors["b"].mul_(1e-3).sub_(tensors["a"])


def not_finite(tensors, shape):
    """A NaN in one of the inputs, an infinity in the other; an infinity less itself is NaN again."""
    a, b = tensors["a"], tensors["b"]
    a[shape["N"] // 2], b[-1] = torch.nan, -torch.inf
    a[shape["N"] // 3], b[shape["N"] // 3] = torch.inf, -torch.inf


@applies(when=wide)
def far_apart(tensors, shape):
    """1e20 beside 1e-20, one or the other in turn, and ones that must not be lost between them."""
    tensors["a"][::3] *= 1e20
    tensors["b"][1::3] *= 1e20
    tensors["a"][1::2] *= 1e-20


@applies(when=wide)
def tiny(tensors, shape):
    """1e-20 beside 1e-20: no number is small by itself."""
    for each in tensors.values():
        each.mul_(1e-20)


CASES = {"cancellation": cancellation, "not_finite": not_finite, "far_apart": far_apart, "tiny": tiny}


def flops(shape: Shape, phase: str) -> int:
    return shape["N"]

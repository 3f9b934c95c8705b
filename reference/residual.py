"""The residual stream's addition: out = a + b. Its gradient is the identity, so there is no backward."""

from reference.contract import Pass, Shape, Tensor

FORWARD = Pass(inputs=(Tensor("a", "N"), Tensor("b", "N")), outputs=(Tensor("out", "N"),))
BACKWARD = None


def forward(a, b):
    return {"out": a + b}


RAGGED = [dict(N=1), dict(N=769 * 127), dict(N=4096)]


def cancellation(tensors, shape):
    """b is almost -a: the sum must still be rounded once."""
    tensors["b"].mul_(1e-3).sub_(tensors["a"])


CASES = {"cancellation": cancellation}


def flops(shape: Shape, phase: str) -> int:
    return shape["N"]

"""LayerNorm over the last axis (Ba et al. 2016): out = (x - mean) * rstd * weight + bias."""

import torch

from reference.contract import FLAG, Pass, Shape, Tensor, applies, scaled, wide

EPS = 1e-5


def has_dresidual(shape: Shape) -> bool:
    return shape["dresidual"]


FORWARD = Pass(
    inputs=(
        Tensor("x", "B T C"),
        Tensor("weight", "C", parameter=True),
        Tensor("bias", "C", parameter=True),
    ),
    scalars=("eps",),
    outputs=(
        Tensor("out", "B T C"),
        Tensor("mean", "B T", "fp32"),
        Tensor("rstd", "B T", "fp32"),
    ),
)
BACKWARD = Pass(
    inputs=(
        Tensor("dout", "B T C"),
        Tensor("dresidual", "B T C", when=has_dresidual),  # arrives along the residual stream, is added to dx
        Tensor("x", "B T C"),
        Tensor("weight", "C", parameter=True),
        Tensor("mean", "B T", "fp32"),
        Tensor("rstd", "B T", "fp32"),
    ),
    outputs=(
        Tensor("dx", "B T C"),
        Tensor("dweight", "C", accumulates=True),
        Tensor("dbias", "C", accumulates=True),
    ),
)


def forward(x, weight, bias, eps):
    mean = x.mean(-1)
    variance = (x - mean[..., None]).square().mean(-1)
    rstd = (variance + eps).rsqrt()
    out = (x - mean[..., None]) * rstd[..., None] * weight + bias
    return {"out": out, "mean": mean, "rstd": rstd}


def backward(dout, dresidual, x, weight, mean, rstd):
    norm = (x - mean[..., None]) * rstd[..., None]
    dnorm = dout * weight
    # dx = rstd * (dnorm - mean(dnorm) - norm * mean(dnorm * norm)), each mean over C
    dx = dnorm - dnorm.mean(-1, keepdim=True) - norm * (dnorm * norm).mean(-1, keepdim=True)
    dx = dx * rstd[..., None]
    if dresidual is not None:
        dx = dx + dresidual
    return {"dx": dx, "dweight": (dout * norm).sum((0, 1)), "dbias": dout.sum((0, 1))}


CHOICES = {"dresidual": FLAG}
RAGGED = [
    dict(B=2, T=127, C=769, eps=EPS, dresidual=False),
    dict(B=1, T=1, C=3, eps=EPS, dresidual=True),
    dict(B=3, T=5, C=64, eps=1e-3, dresidual=True),  # another one
    dict(B=2, T=9, C=768, eps=EPS, dresidual=True),
    dict(B=1, T=3, C=16384, eps=EPS, dresidual=False),
]


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Weights around one, as in a trained network, a few below 0; biases small."""
    tensors["weight"].mul_(0.1).add_(1)
    tensors["weight"][::16].neg_()
    tensors["bias"].mul_(0.1)


def zero_variance(tensors, shape):
    tensors["x"].copy_(tensors["x"][..., :1].expand_as(tensors["x"]))


def large_mean(tensors, shape):
    tensors["x"].mul_(0.25).add_(100.0)


@applies(when=wide)
def tiny(tensors, shape):
    """Deviations of 1e-15, far below eps, and no bias beside which they would not count: out is x / sqrt(eps)."""
    for name in ("x", "residual"):  # of residual_layernorm
        if name in tensors:
            tensors[name].mul_(1e-15)
    if "bias" in tensors:
        tensors["bias"].zero_()


def outliers(x: torch.Tensor, last: bool) -> torch.Tensor:
    """1e4 in the first columns of each row, or the last: 64, 32, … 1 of them in turn, never more than half a row.

    Whoever takes the whole row's mean, or its scale, to be near that of one end is far off.
    """
    C, rows = x.shape[-1], x.flatten(0, -2)
    count = (2 ** (6 - torch.arange(len(rows)) % 7)).clamp(max=max(1, C // 2))
    column = torch.arange(C).flip(0) if last else torch.arange(C)
    return x.masked_fill((column < count[:, None]).view_as(x), 1e4)


def first_columns(tensors, shape):
    tensors["x"].copy_(outliers(tensors["x"], last=False))


def last_columns(tensors, shape):
    tensors["x"].copy_(outliers(tensors["x"], last=True))


def not_finite(tensors, shape):
    """A NaN in a row of x, and in one of dout: what depends on neither stays as it is."""
    tensors["x"][0, 0, shape["C"] // 2] = torch.nan
    if "dout" in tensors:
        tensors["dout"][-1, -1, shape["C"] // 3] = torch.nan


CASES = {
    "zero_variance": zero_variance,
    "large_mean": large_mean,
    "tiny": tiny,
    "first_columns": first_columns,
    "last_columns": last_columns,
    "not_finite": not_finite,
    "huge_gradient": scaled("d", 1e20),
    "tiny_gradient": scaled("d", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """Per element: two moments (3), normalise and scale (4); backward two sums (4), dx (5), dweight and dbias (3)."""
    return shape["B"] * shape["T"] * shape["C"] * {"forward": 7, "backward": 12}[phase]

"""Matrix product of int8 groups: out = sum over groups of x_scale * scale * (int32 dot product of the group).

Both operands are what `q8_quantise` makes: groups of G lie along a row, the last is short where G does not divide K.
"""

import torch

from reference.contract import Pass, Shape, Tensor, applies, wide
from reference.q8_quantise import grouped

FORWARD = Pass(
    inputs=(
        Tensor("x", "M K", "int8"),
        Tensor("x_scales", "M KG", "fp32"),
        Tensor("weight", "N K", "int8", parameter=True),
        Tensor("scales", "N KG", "fp32", parameter=True),
    ),
    scalars=("G",),
    outputs=(Tensor("out", "M N"),),
)
BACKWARD = None


def sizes(M: int, N: int, K: int, G: int) -> Shape:
    """The shape of M rows against N, both of K in groups of G."""
    return dict(M=M, N=N, K=K, G=G, KG=-(-K // G))


def forward(x, x_scales, weight, scales, G):
    dtype = scales.dtype
    out = torch.zeros(len(x), len(weight), dtype=dtype, device=x.device)
    x, weight = (grouped(t.to(dtype), G) for t in (x, weight))
    for g in range(x.shape[1]):
        out += (x[:, g] @ weight[:, g].T) * x_scales[:, g, None] * scales[None, :, g]
    return {"out": out}


RAGGED = [
    sizes(19, 130, 172, 64),  # llama2-tiny's second matrix
    sizes(1, 65, 77, 32),
    sizes(1, 1, 1, 1),
    sizes(1, 96, 288, 64),  # llama2-15m's width: the last group is half of one
    sizes(12, 64, 256, 32),  # several rows, and groups of a vector
    sizes(3, 33, 9, 16),  # a group longer than a row
    sizes(8, 70, 70, 7),  # square: sizes do not tell how weight lies
    sizes(1, 128, 768, 64),
    sizes(64, 128, 256, 64),  # whole tiles
]


def typical(B: int, T: int) -> Shape:
    """The head of llama2-110m in decode of one sequence: 24 MB of weights."""
    return sizes(1, 32000, 768, 64)


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Scales are positive, and such that out is of size one: whole numbers up to 127 have an rms of 73."""
    for name in ("x_scales", "scales"):
        tensors[name].abs_().add_(0.5).div_(73)
    tensors["scales"].mul_(shape["K"] ** -0.5)


def largest(tensors, shape):
    """All products are 127 * 127: what adds pairs of them in 16 bits with an offset overflows."""
    tensors["x"].fill_(127)
    tensors["weight"].fill_(127)


def most_negative(tensors, shape):
    """All products are -127 * 127, and 127 * -127 in every second row."""
    tensors["x"].fill_(127)
    tensors["weight"].fill_(-127)
    tensors["x"][1::2] = -127
    tensors["weight"][1::2] = 127


def cancelling(tensors, shape):
    """Neighbours cancel, all but the last one of a row."""
    sign = torch.where(torch.arange(shape["K"]) % 2 == 0, 127, -127).to(torch.int8)
    tensors["x"].fill_(127)
    tensors["weight"].copy_(sign.expand_as(tensors["weight"]))
    tensors["weight"][:, -1] = 1


def several(shape: Shape) -> bool:
    return shape["KG"] > 1


def _alone(tensors, shape, group):
    for name in ("x_scales", "scales"):
        kept = tensors[name][:, group].clone()
        tensors[name].zero_()
        tensors[name][:, group] = kept


@applies(when=several)
def first_group_alone(tensors, shape):
    """All other scales are 0."""
    _alone(tensors, shape, 0)


@applies(when=several)
def last_group_alone(tensors, shape):
    """The last group, which may be a short one, is all that counts."""
    _alone(tensors, shape, -1)


@applies(when=several)
def growing_scales(tensors, shape):
    """Each group's scale is many times the one before: another one's is seen at once."""
    for name in ("x_scales", "scales"):
        steps = 4.0 ** (torch.arange(shape["KG"]) % 7)
        tensors[name].mul_(steps.to(tensors[name]))


@applies(when=lambda shape: shape["K"] > 1)
def last_element_alone(tensors, shape):
    """All others are 0."""
    for name in ("x", "weight"):
        tensors[name][:, :-1] = 0


@applies(when=wide)
def huge(tensors, shape):
    tensors["scales"].mul_(1e20)


@applies(when=wide)
def tiny(tensors, shape):
    tensors["scales"].mul_(1e-20)


def one_nan(tensors, shape):
    """A scale that is NaN, of the last group of x's last row: all of that row of out, and no other."""
    tensors["x_scales"][-1, -1] = torch.nan


CASES = {
    "largest": largest,
    "most_negative": most_negative,
    "cancelling": cancelling,
    "first_group_alone": first_group_alone,
    "last_group_alone": last_group_alone,
    "growing_scales": growing_scales,
    "last_element_alone": last_element_alone,
    "huge": huge,
    "tiny": tiny,
    "one_nan": one_nan,
}


def flops(shape: Shape, phase: str) -> int:
    """2 M N K, as of any product; scales are not counted."""
    return 2 * shape["M"] * shape["N"] * shape["K"]

"""Rows to int8 with one scale a group: scale = max|x| / 127, q = x / scale rounded to even; groups lie along a row.

The last group of a row is short where G does not divide K (llama2.c's Q8_0 lets groups run over the ends of rows, and
loses what is left over: karpathy/llama2.c, runq.c `quantize`). A group of zeros has scale 1; one that holds a NaN or an
infinity has scale NaN and q = 0, so that what is made of it is NaN.
"""

import torch
import torch.nn.functional as F

from reference.contract import Pass, Shape, Tensor, applies, wide

MOST = 127  # -128 is not used: q and -q are both numbers
TIE = 2**-6  # x / scale keeps so far from n + 1/2 that no way of working it out rounds to another n

FORWARD = Pass(
    inputs=(Tensor("x", "M K"),),
    scalars=("G",),
    outputs=(Tensor("q", "M K", "int8"), Tensor("scales", "M KG", "fp32")),
)
BACKWARD = None


def sizes(M: int, K: int, G: int) -> Shape:
    """The shape of M rows of K in groups of G."""
    return dict(M=M, K=K, G=G, KG=-(-K // G))


def grouped(x: torch.Tensor, G: int) -> torch.Tensor:
    """(M, K) as (M, KG, G), the last group filled up with zeros."""
    return F.pad(x, (0, -x.shape[-1] % G)).unflatten(-1, (-1, G))


def spread(scales: torch.Tensor, G: int, K: int) -> torch.Tensor:
    """(M, KG) as (M, K): of each element its group's."""
    return scales.repeat_interleave(G, -1)[:, :K]


def scales_of(x: torch.Tensor, G: int) -> torch.Tensor:
    """(M, KG)."""
    largest = grouped(x, G).abs().amax(-1)
    scales = torch.where(largest == 0, 1.0, largest / MOST)
    return scales.masked_fill(~largest.isfinite(), torch.nan)


def forward(x, G):
    scales = scales_of(x, G)
    ratio = (x / spread(scales, G, x.shape[-1])).nan_to_num(0.0, 0.0, 0.0)
    return {"q": ratio.round().to(torch.int8), "scales": scales}


RAGGED = [
    sizes(5, 77, 32),
    sizes(1, 1, 1),
    sizes(2, 288, 64),  # llama2-15m's width: the last group is half of one
    sizes(4, 256, 32),
    sizes(3, 9, 16),  # a group longer than a row
    sizes(33, 65, 7),
    sizes(2, 1024, 128),
]
LONG = {"M": 128}


def typical(B: int, T: int) -> Shape:
    """Prefill of llama2-110m: activations in front of the first matrix of a block."""
    return sizes(B * T, 768, 64)


def settle(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Moves values whose rounding is in doubt to the whole number below: q is then the same in any arithmetic."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(shape["dtype"], tensors["x"].dtype)
    x = tensors["x"].to(dtype).double()
    scales = spread(scales_of(x, shape["G"]), shape["G"], shape["K"])
    size = x.abs() / scales
    doubtful = (size.frac() - 0.5).abs() < TIE
    tensors["x"].copy_(torch.where(doubtful, x.sign() * size.floor() * scales, x).to(dtype))


def zero_groups(tensors, shape):
    """The last group of every row and the first of the first one are all zeros."""
    G = shape["G"]
    tensors["x"][:, (shape["KG"] - 1) * G :] = 0
    tensors["x"][0, :G] = 0


def all_zero(tensors, shape):
    tensors["x"].zero_()


def _outlier(tensors, shape, place, size):
    x, G = tensors["x"], shape["G"]
    for first in range(0, shape["K"], G):
        x[:, min(first + place % G, shape["K"] - 1)] = size


def first_of_each_group(tensors, shape):
    """The first of each group is so large that all others of it become 0."""
    _outlier(tensors, shape, 0, 2.0**14)


def last_of_each_group(tensors, shape):
    """The same of the last, and negative: the largest magnitude is not the largest value."""
    _outlier(tensors, shape, -1, -(2.0**14))


@applies(when=lambda shape: shape["KG"] > 1)
def growing_groups(tensors, shape):
    """Each group is many times as large as the one before: another one's scale is seen at once."""
    steps = 2.0 ** (torch.arange(shape["KG"]) % 7 * 2)
    tensors["x"].mul_(spread(steps[None], shape["G"], shape["K"]).to(tensors["x"]))


def ties(tensors, shape):
    """All lie half way between two whole numbers, the largest is 127: half of them go down, half go up."""
    x, G = tensors["x"], shape["G"]
    number = torch.arange(shape["K"]) % 127
    x.copy_(((number - 63) + 0.5).expand_as(x))
    x[:, ::G] = 127.0


def alternating_signs(tensors, shape):
    """+127, -127, …: all are the largest."""
    x = tensors["x"]
    x.copy_(torch.where(torch.arange(shape["K"]) % 2 == 0, 3.0, -3.0).expand_as(x))


@applies(when=wide)
def huge(tensors, shape):
    tensors["x"].mul_(2.0**66)


@applies(when=wide)
def tiny(tensors, shape):
    tensors["x"].mul_(2.0**-66)


def one_nan(tensors, shape):
    """A NaN in the last element: its group has no scale; the others are none the worse."""
    tensors["x"][-1, -1] = torch.nan


def one_infinity(tensors, shape):
    """Minus infinity in the first element."""
    tensors["x"][0, 0] = -torch.inf


CASES = {
    "zero_groups": zero_groups,
    "all_zero": all_zero,
    "first_of_each_group": first_of_each_group,
    "last_of_each_group": last_of_each_group,
    "growing_groups": growing_groups,
    "ties": ties,
    "alternating_signs": alternating_signs,
    "huge": huge,
    "tiny": tiny,
    "one_nan": one_nan,
    "one_infinity": one_infinity,
}


def flops(shape: Shape, phase: str) -> int:
    """An element: compared, divided, rounded."""
    return 3 * shape["M"] * shape["K"]

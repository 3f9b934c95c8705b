"""Rotary position embedding (Su et al. 2021), in place: pairs of a head's channels are turned by an angle that grows
with the position. Channels a and b of pair i at position p become

    a cos - b sin,  a sin + b cos,    the angle being p theta^(-2i/HS)

of the first R of H heads of a packed tensor, as the qkv matmul writes it: q and k are turned, v, behind them, stays.
A pair is (2i, 2i + 1) where the style is "interleaved" (Llama's own weights, llama2.c), and (i, i + HS/2) where it is
"half" (Hugging Face's); one permutation of the rows of the weights leads from one to the other. Cosines and sines come
from a table, whose row is the position; a sequence's first token has position `start`. Backward turns the gradient by
the same angle the other way.
"""

import torch

from reference.contract import ITEM_SIZE, Pass, Shape, Tensor, applies, wide

TABLES = (
    Tensor("start", "B", "int", high="S"),  # position of each sequence's first token; the last one's is below S
    Tensor("cos", "S HS/2", "fp32"),
    Tensor("sin", "S HS/2", "fp32"),
)
FORWARD = Pass(
    inputs=TABLES,
    scalars=("R", "style"),
    outputs=(Tensor("qkv", "B T H HS", inplace=True),),
)
BACKWARD = Pass(
    inputs=TABLES,
    scalars=("R", "style"),
    outputs=(Tensor("dqkv", "B T H HS", inplace=True),),
)
STYLES = ("interleaved", "half")
CHOICES = {"style": STYLES}
TIED = ("cos", "sin")  # of one angle
LONG = {"B": 2, "T": 128}  # R is a number of heads here, and S what `start` may name


def table(S: int, HS: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, fp32 (S, HS/2), of position times theta^(-2i/HS): worked out in fp64, rounded once."""
    frequency = theta ** (torch.arange(0, HS, 2, dtype=torch.float64) / -HS)
    angle = torch.outer(torch.arange(S, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def pairs(x: torch.Tensor, style: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second channels of all pairs, views of (…, HS/2). Raises KeyError for another style."""
    half = x.shape[-1] // 2
    first, second = {
        "interleaved": (slice(0, None, 2), slice(1, None, 2)),
        "half": (slice(0, half), slice(half, None)),
    }[style]
    return x[..., first], x[..., second]


def rotated(x, start, cos, sin, R, style):
    """x (B, T, H, HS), its first R heads turned, in memory of its own."""
    position = start[:, None] + torch.arange(x.shape[1], device=x.device)
    cos, sin = cos[position][:, :, None], sin[position][:, :, None]  # (B, T, 1, HS/2)
    a, b = pairs(x[:, :, :R], style)
    turned = a * cos - b * sin, a * sin + b * cos
    heads = torch.stack(turned, -1).flatten(-2) if style == "interleaved" else torch.cat(turned, -1)
    return torch.cat([heads, x[:, :, R:]], 2)


def forward(start, cos, sin, R, style, qkv):
    return {"qkv": rotated(qkv, start, cos, sin, R, style)}


def backward(start, cos, sin, R, style, dqkv):
    return {"dqkv": rotated(dqkv, start, cos, -sin, R, style)}


RAGGED: list[Shape] = [
    dict(B=2, T=33, H=5, R=3, HS=48, S=40, theta=1e4, style="interleaved"),
    dict(B=2, T=7, H=6, R=5, HS=80, S=64, theta=1e4, style="half"),
    dict(B=1, T=1, H=1, R=1, HS=2, S=1, theta=1e4, style="interleaved"),  # one pair, and no position but the first
    dict(
        B=3, T=17, H=4, R=4, HS=6, S=66000, theta=5e5, style="half"
    ),  # nothing is left alone; positions beyond 16 bits
    dict(B=3, T=5, H=7, R=3, HS=10, S=50, theta=1e4, style="interleaved"),
    dict(B=2, T=16, H=12, R=8, HS=64, S=32, theta=1e4, style="interleaved"),  # Llama's head sizes
    dict(B=1, T=8, H=6, R=4, HS=128, S=2048, theta=1e6, style="half"),
    dict(B=8, T=1, H=9, R=5, HS=128, S=300, theta=1e4, style="interleaved"),  # one token each, as in decoding
    dict(B=2, T=2, H=3, R=2, HS=264, S=128, theta=1e4, style="interleaved"),  # larger than anybody's
]


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """The table's own cosines and sines, and places for whole sequences in it."""
    tensors["start"].remainder_(shape["S"] - shape["T"] + 1)
    for name, values in zip(("cos", "sin"), table(shape["S"], shape["HS"], shape["theta"]), strict=True):
        tensors[name].copy_(values)


def _turned(tensors):
    """The tensor that is turned, forward's or backward's."""
    return tensors["dqkv"] if "dqkv" in tensors else tensors["qkv"]


def has_room(shape: Shape) -> bool:
    """Whether a sequence may begin elsewhere than at 0."""
    return shape["S"] > shape["T"]


@applies(when=has_room)
def first_positions(tensors, shape):
    """Every sequence begins at 0, where nothing turns."""
    tensors["start"].zero_()


@applies(when=has_room)
def both_ends(tensors, shape):
    """Sequences take turns at the beginning and at the end of the table: each has a start of its own. The table is of
    another theta than all others of these sizes: what stood at a position before says nothing of it."""
    start = tensors["start"]
    for name, values in zip(("cos", "sin"), table(shape["S"], shape["HS"], 4 * shape["theta"]), strict=True):
        tensors[name].copy_(values)
    start[0::2], start[1::2] = shape["S"] - shape["T"], 0


def turned_back(tensors, shape):
    """One of each pair comes out as nearly nothing: a table in fewer digits leaves much more of it."""
    x = _turned(tensors)
    zero_first = x.clone()
    pairs(zero_first, shape["style"])[0].zero_()
    back = tensors["sin"] if "dqkv" in tensors else -tensors["sin"]
    x.copy_(rotated(zero_first, tensors["start"], tensors["cos"], back, shape["H"], shape["style"]))


@applies(when=wide)
def huge(tensors, shape):
    """1e20 in the pairs of every other head, 1e-20 in the heads between, turned or not."""
    x = _turned(tensors)
    x[:, :, 0::2] *= 1e20
    x[:, :, 1::2] *= 1e-20


def one_nan(tensors, shape):
    """A NaN in the last channel of the last head that is turned: it stays in its pair. Infinities in those behind
    it, which nothing is multiplied with, stay what they are."""
    x, R = _turned(tensors), shape["R"]
    x[0, -1, R - 1, -1] = torch.nan
    x[:, :, R:, 0::3] = torch.inf


CASES = {
    "first_positions": first_positions,
    "both_ends": both_ends,
    "turned_back": turned_back,
    "huge": huge,
    "one_nan": one_nan,
}


def flops(shape: Shape, phase: str) -> int:
    """Four multiplications and two additions a pair."""
    return 3 * shape["B"] * shape["T"] * shape["R"] * shape["HS"]


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """The heads that are turned, read and written; of the table T rows, as many as are named if all starts are one."""
    B, T, R, HS = shape["B"], shape["T"], shape["R"], shape["HS"]
    turned = B * T * R * HS * ITEM_SIZE[shape["dtype"]]
    return 2 * turned + T * HS * ITEM_SIZE["fp32"] + B * ITEM_SIZE["int"]


def typical(B: int, T: int) -> Shape:
    """Of Llama 2 with 110 million parameters (llama2.c): 12 heads of 64, whose q and k are turned and v is not."""
    return dict(B=B, T=T, H=36, R=24, HS=64, S=max(T, 1024), theta=1e4, style="interleaved")

"""Softmax over the last axis, with an optional causal mask: row r sees columns 0 … r mod S; masked outputs are 0."""

import torch

from reference.contract import FLAG, ITEM_SIZE, Pass, Shape, Tensor, alike, applies, scaled

FORWARD = Pass(inputs=(Tensor("x", "R S"),), scalars=("causal",), outputs=(Tensor("out", "R S"),))
BACKWARD = Pass(
    inputs=(Tensor("dout", "R S"), Tensor("out", "R S")),
    scalars=("causal",),
    outputs=(Tensor("dx", "R S"),),
)


def visible(rows: int, columns: int, causal: bool, device: torch.device | str = "cpu") -> torch.Tensor:
    """Boolean (rows, columns): which scores count."""
    if not causal:
        return torch.ones(rows, columns, dtype=torch.bool, device=device)
    position = torch.arange(rows, device=device)[:, None] % columns
    return torch.arange(columns, device=device)[None, :] <= position


def forward(x, causal):
    mask = visible(x.shape[0], x.shape[1], causal, x.device)
    x = x.masked_fill(~mask, -torch.inf)
    e = (x - x.amax(-1, keepdim=True)).exp()
    return {"out": e / e.sum(-1, keepdim=True)}


def backward(dout, out, causal):
    # dx = out * (dout - sum(dout * out)); a masked column has out = 0 and so dx = 0
    mask = visible(out.shape[0], out.shape[1], causal, out.device)
    dout = dout.masked_fill(~mask, 0)
    return {"dx": out * (dout - (dout * out).sum(-1, keepdim=True))}


CHOICES = {"causal": FLAG}
RAGGED = [
    dict(R=3, S=50257, causal=False),
    dict(R=2 * 127, S=127, causal=True),
    dict(R=1, S=1, causal=True),
    dict(R=33, S=769, causal=False),
    dict(R=2 * 128, S=128, causal=True),
    dict(R=5, S=1024, causal=False),
    dict(R=1, S=3 << 15, causal=False),
    dict(R=21, S=16, causal=True),  # no whole number of squares
]


def huge_logit(tensors, shape):
    x = tensors["x"]
    x[:, 0] = 1e4
    x[-1, :] = -1e4


@alike
def all_equal(tensors, shape):
    tensors["x"].fill_(3.0)


def huge_last(tensors, shape):
    """The last score that a row sees is the largest by far: whatever was summed before it counts for nothing."""
    x = tensors["x"]
    x.scatter_(1, _last_seen(x, shape), 1e4)


def growing(tensors, shape):
    """Each score is larger than all before it: a running maximum is raised at every step."""
    tensors["x"].copy_(torch.linspace(-50, 50, shape["S"]).expand_as(tensors["x"]))


def far_below(tensors, shape):
    """All scores below what a kernel may have chosen as the lowest there is; the last one is the largest by far."""
    x, fp16 = tensors["x"], shape["dtype"] == "fp16"
    x.fill_(-6.5e4 if fp16 else -3e38)
    x.scatter_(1, _last_seen(x, shape), -6e4 if fp16 else -1e30)


@applies(when=lambda shape: shape["S"] > 1)
def minus_infinity(tensors, shape):
    """A mask of infinities as models add it: all but the last score a row sees, all but every second, a few."""
    x = tensors["x"]
    before = torch.arange(shape["S"]) < _last_seen(x, shape)
    x[0::3] = x[0::3].masked_fill(before[0::3], -torch.inf)
    x[1::3, 1::2] = -torch.inf
    x[2::3] = x[2::3].masked_fill(before[2::3] & (x[2::3] < -1), -torch.inf)


def last_sees_all(shape: Shape) -> bool:
    return not shape["causal"] or shape["R"] % shape["S"] == 0


@applies(when=last_sees_all)
def masked_row(tensors, shape):
    """A row without a single score: no probabilities, NaN in all of it, as in PyTorch. The other rows are none the
    worse."""
    tensors["x"][-1] = -torch.inf


@applies(when=last_sees_all)
def not_finite(tensors, shape):
    """A NaN among a row's scores makes all of it NaN; so does one of its gradient."""
    x = tensors["x"]
    if "dout" in tensors:
        tensors["dout"][-1, shape["S"] // 2] = torch.nan
    else:
        x[-1, shape["S"] // 2] = torch.nan
        if not shape["causal"]:
            x[0, -1] = torch.inf if shape["R"] > 1 else torch.nan


def _last_seen(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """(R, 1): the last column that each row sees."""
    S = shape["S"]
    row = torch.arange(len(x))[:, None]
    return row % S if shape["causal"] else torch.full_like(row, S - 1)


CASES = {
    "huge_logit": huge_logit,
    "all_equal": all_equal,
    "huge_last": huge_last,
    "growing": growing,
    "far_below": far_below,
    "minus_infinity": minus_infinity,
    "masked_row": masked_row,
    "not_finite": not_finite,
    "huge_gradient": scaled("dout", 1e20),
    "tiny_gradient": scaled("dout", 1e-20),
}


def flops(shape: Shape, phase: str) -> int:
    """Per visible score: max, subtract, exp, sum, divide (5); backward 4."""
    return _visible_scores(shape) * {"forward": 5, "backward": 4}[phase]


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """Masked scores need not be read, but their zeros are written."""
    reads = _visible_scores(shape) * {"forward": 1, "backward": 2}[phase]
    return (reads + shape["R"] * shape["S"]) * ITEM_SIZE[shape["dtype"]]


def _visible_scores(shape: Shape) -> int:
    R, S = shape["R"], shape["S"]
    if not shape["causal"]:
        return R * S
    whole, rest = divmod(R, S)
    return whole * S * (S + 1) // 2 + rest * (rest + 1) // 2

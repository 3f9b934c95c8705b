"""Softmax over the last axis, with an optional causal mask: row r sees columns 0 … r mod S; masked outputs are 0."""

import torch

from reference.contract import ITEM_SIZE, Pass, Shape, Tensor

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


RAGGED = [
    dict(R=3, S=50257, causal=False),
    dict(R=2 * 127, S=127, causal=True),
    dict(R=1, S=1, causal=True),
    dict(R=33, S=769, causal=False),
    dict(R=2 * 128, S=128, causal=True),
    dict(R=5, S=1024, causal=False),
]


def huge_logit(tensors, shape):
    x = tensors["x"]
    x[:, 0] = 1e4
    x[-1, :] = -1e4


def all_equal(tensors, shape):
    tensors["x"].fill_(3.0)


CASES = {"huge_logit": huge_logit, "all_equal": all_equal}


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

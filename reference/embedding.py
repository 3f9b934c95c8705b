"""Token plus position embedding: out[b, t] = wte[tokens[b, t]] + wpe[t]."""

import torch

from reference.contract import ITEM_SIZE, Pass, Shape, Tensor

FORWARD = Pass(
    inputs=(
        Tensor("tokens", "B T", "int", high="V"),
        Tensor("wte", "V C", parameter=True),
        Tensor("wpe", "T C", parameter=True),
    ),
    outputs=(Tensor("out", "B T C"),),
)
# Each row of dwte is a sum in fp32 over the tokens that used it, rounded once; rows no token used become 0
# (or stay, with accumulate).
BACKWARD = Pass(
    inputs=(Tensor("dout", "B T C"), Tensor("tokens", "B T", "int", high="V")),
    scalars=("V",),
    outputs=(Tensor("dwte", "V C", accumulates=True), Tensor("dwpe", "T C", accumulates=True)),
)


def forward(tokens, wte, wpe):
    return {"out": wte[tokens] + wpe}


def backward(dout, tokens, V):
    dwte = torch.zeros(V, dout.shape[-1], dtype=dout.dtype, device=dout.device)
    dwte.index_add_(0, tokens.flatten(), dout.flatten(0, 1))
    return {"dwte": dwte, "dwpe": dout.sum(0)}


RAGGED = [dict(B=2, T=127, C=769, V=300), dict(B=1, T=1, C=768, V=1), dict(B=3, T=33, C=64, V=50257)]


def one_token(tensors, shape):
    """Every position holds the last token: the longest possible sum into one row."""
    tensors["tokens"].fill_(shape["V"] - 1)


CASES = {"one_token": one_token}


def flops(shape: Shape, phase: str) -> int:
    return shape["B"] * shape["T"] * shape["C"] * {"forward": 1, "backward": 2}[phase]


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """Only the rows of wte that tokens name are read: at most B T of them, and at least the distinct ones.

    The distinct count depends on the data; the floor takes one row, so that it is never above the truth.
    """
    B, T, C, V = shape["B"], shape["T"], shape["C"], shape["V"]
    item = ITEM_SIZE[shape["dtype"]]
    tokens, activations, positions = B * T * ITEM_SIZE["int"], B * T * C * item, T * C * item
    if phase == "forward":
        return tokens + activations + positions + C * item
    table = C * item if shape.get("accumulate") else V * C * item
    factor = 2 if shape.get("accumulate") else 1
    return tokens + activations + factor * (positions + table)

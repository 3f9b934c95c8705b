"""Token plus position embedding: out[b, t] = wte[tokens[b, t]] + wpe[t].

A shape whose `positions` is False has no wpe, as models that turn q and k by their positions: out is the row of wte.
"""

import torch

from reference.contract import FLAG, ITEM_SIZE, Pass, Shape, Tensor, scaled


def has_positions(shape: Shape) -> bool:
    return shape.get("positions", True)


FORWARD = Pass(
    inputs=(
        Tensor("tokens", "B T", "int", high="V"),
        Tensor("wte", "V C", parameter=True),
        Tensor("wpe", "T C", when=has_positions, parameter=True),
    ),
    outputs=(Tensor("out", "B T C"),),
)
# Each row of dwte is a sum in fp32 over the tokens that used it, rounded once; rows no token used become 0
# (or stay, with accumulate).
BACKWARD = Pass(
    inputs=(Tensor("dout", "B T C"), Tensor("tokens", "B T", "int", high="V")),
    scalars=("V",),
    outputs=(
        Tensor("dwte", "V C", accumulates=True),
        Tensor("dwpe", "T C", when=has_positions, accumulates=True),
    ),
)


def forward(tokens, wte, wpe):
    return {"out": wte[tokens] if wpe is None else wte[tokens] + wpe}


def backward(dout, tokens, V):
    dwte = torch.zeros(V, dout.shape[-1], dtype=dout.dtype, device=dout.device)
    dwte.index_add_(0, tokens.flatten(), dout.flatten(0, 1))
    return {"dwte": dwte, "dwpe": dout.sum(0)}


CHOICES = {"positions": FLAG}
RAGGED = [
    dict(B=2, T=127, C=769, V=300),
    dict(B=1, T=1, C=768, V=1),
    dict(B=9, T=11, C=16, V=50257),  # more sequences than are summed at once
    dict(B=2, T=64, C=8, V=98304),  # 2^15 3: more than 16 bits name
    dict(B=1, T=128, C=128, V=256),  # 2^n of everything
    dict(B=2, T=65, C=100, V=300, positions=False),
    dict(B=1, T=96, C=288, V=512, positions=False),
]
LONG = {"B": 2, "T": 128, "V": 128}  # else a slice's table alone would be too much


def one_token(tensors, shape):
    """Every position holds the last token: the longest possible sum into one row."""
    tensors["tokens"].fill_(shape["V"] - 1)


def two_tokens(tensors, shape):
    """The first token and the last take turns: rows at both ends, and no long run of one."""
    tokens = tensors["tokens"].view(-1)
    tokens.zero_()
    tokens[1::2] = shape["V"] - 1


def same_low_bits(tensors, shape):
    """Tokens that differ only above their low eight or sixteen bits, which a sort of too few bits takes for one."""
    stride = 65536 if shape["V"] > 65536 else 256
    count = tensors["tokens"].numel()
    tensors["tokens"].copy_((torch.arange(count) * stride % shape["V"] // stride * stride).view_as(tensors["tokens"]))


def falling(tensors, shape):
    """Every token once, the largest first, as far as there are so many."""
    count = tensors["tokens"].numel()
    tensors["tokens"].copy_(((shape["V"] - 1 - torch.arange(count)) % shape["V"]).view_as(tensors["tokens"]))


def huge_gradient(tensors, shape):
    """Gradients of 1e20; in fp16, whose range is small, of 1e3."""
    if "dout" in tensors:
        tensors["dout"].mul_(1e3 if shape["dtype"] == "fp16" else 1e20)


def tiny_gradient(tensors, shape):
    """Gradients of 1e-20; in fp16 of 1e-3."""
    if "dout" in tensors:
        tensors["dout"].mul_(1e-3 if shape["dtype"] == "fp16" else 1e-20)


def one_nan(tensors, shape):
    """A NaN in one element: of a row of wte that the first token reads, or of dout. It stays in its column."""
    if "dout" in tensors:
        tensors["dout"][-1, -1, -1] = torch.nan
    else:
        tensors["wte"][tensors["tokens"][0, 0], -1] = torch.nan


CASES = {
    "one_token": one_token,
    "two_tokens": two_tokens,
    "same_low_bits": same_low_bits,
    "falling": falling,
    "huge_gradient": huge_gradient,
    "tiny_gradient": tiny_gradient,
    "huge_tables": scaled("w", 1e20, "forward"),
    "tiny_tables": scaled("w", 1e-20, "forward"),
    "one_nan": one_nan,
}


def flops(shape: Shape, phase: str) -> int:
    """An addition an element, in backward one for each table; without positions forward is a copy, counted as one."""
    return shape["B"] * shape["T"] * shape["C"] * (1 + (phase == "backward" and has_positions(shape)))


def compulsory_bytes(shape: Shape, phase: str) -> int:
    """Only the rows of wte that tokens name are read: at most B T of them, and at least the distinct ones.

    The distinct count depends on the data; the floor takes one row, so that it is never above the truth.
    """
    B, T, C, V = shape["B"], shape["T"], shape["C"], shape["V"]
    item = ITEM_SIZE[shape["dtype"]]
    tokens, activations = B * T * ITEM_SIZE["int"], B * T * C * item
    positions = T * C * item if has_positions(shape) else 0
    if phase == "forward":
        return tokens + activations + positions + C * item
    table = C * item if shape.get("accumulate") else V * C * item
    factor = 2 if shape.get("accumulate") else 1
    return tokens + activations + factor * (positions + table)

"""Decode's linear layer: out = x @ weight^T for one to eight rows of x; weight is (out, in), as in torch.

Each weight meets so few rows that the time is that of reading the weights: the floor is their bytes.
"""

import torch

from reference import matmul
from reference.contract import Pass, Shape, Tensor

MOST_ROWS = 8

FORWARD = Pass(
    inputs=(Tensor("x", "M K"), Tensor("weight", "N K", parameter=True)),
    outputs=(Tensor("out", "M N"),),
)
BACKWARD = None


def forward(x, weight):
    return {"out": x @ weight.T}


RAGGED = [
    dict(M=3, N=65, K=769),
    dict(M=1, N=1, K=1),
    dict(M=1, N=257, K=172),  # rows of whole quads, not of whole vectors
    dict(M=8, N=33, K=48),
    dict(M=3, N=48, K=48),  # square: sizes do not tell how weight lies
    dict(M=1, N=96, K=512),  # whole vectors of everything
    dict(M=5, N=7, K=2055),
    dict(M=4, N=64, K=2048),
    dict(M=2, N=128, K=288),
    dict(M=6, N=31, K=96),
    dict(M=7, N=48, K=1376),
    dict(M=8, N=256, K=768),
]
LONG = {"N": 128}  # M is few rows as it is


def consistent(tensors: dict[str, torch.Tensor], shape: Shape) -> None:
    """Weights at 1/sqrt(K), so that out is of the size of x."""
    matmul.consistent(tensors, shape)


def nan_weight(tensors, shape):
    """A NaN in the last weight of the first output: that column of out is NaN, no other."""
    tensors["weight"][0, -1] = torch.nan


CASES = {**matmul.CASES, "nan_weight": nan_weight}


def flops(shape: Shape, phase: str) -> int:
    return 2 * shape["M"] * shape["N"] * shape["K"]


def typical(B: int, T: int) -> Shape:
    """The MLP's first product in Llama 2 110m, for as many sequences as there are (eight at most)."""
    return dict(M=min(B, MOST_ROWS), N=4096, K=768)

"""The calls that a model is made of."""

from dataclasses import dataclass
from typing import Any

import torch

from reference import contract

Key = tuple[str, str]  # (id, phase)
Batch = tuple[torch.Tensor, torch.Tensor]  # tokens, targets: (B, T) int64


def again(layer: str) -> str:
    return f"{layer}/recompute"


def layer_of(id: str) -> str:
    return id.partition("/")[0]


@dataclass(frozen=True)
class Call:
    """One call of a layer: positional inputs and scalars, and what it writes, as the contract orders them."""

    id: str
    phase: str
    inputs: tuple
    outputs: dict[str, Any]

    @property
    def key(self) -> Key:
        return self.id, self.phase

    @property
    def accumulate(self) -> bool:
        p = contract.pass_of(contract.load(layer_of(self.id)), self.phase)
        return p.accumulates and self.inputs[-1]

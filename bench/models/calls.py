"""The calls that a model is made of."""

from dataclasses import dataclass
from typing import Any

import torch

from bench.models import CallId
from reference import contract

Batch = tuple[torch.Tensor, torch.Tensor]  # tokens, targets: (B, T) int64


@dataclass(frozen=True)
class Call:
    """One call of a layer: positional inputs and scalars, and what it writes, as the contract orders them."""

    id: CallId
    inputs: tuple
    outputs: dict[str, Any]

    @property
    def accumulate(self) -> bool:
        p = contract.pass_of(contract.load(self.id.layer), self.id.phase)
        return p.accumulates and self.inputs[-1]

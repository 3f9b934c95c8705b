"""The calls that a model is made of."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bench.models import CallId
from reference import contract

Batch = tuple[torch.Tensor, torch.Tensor]  # tokens, targets: (B, T) int64
Tensors = torch.Tensor | list[torch.Tensor] | None  # None where the shape does not use it


@dataclass(frozen=True)
class Call:
    """One call of a layer: positional inputs and scalars, and what it writes, as the contract orders them."""

    id: CallId
    inputs: tuple[object, ...]
    outputs: Mapping[str, Tensors]

    @property
    def accumulate(self) -> bool:
        p = contract.pass_of(contract.load(self.id.layer), self.id.phase)
        return p.accumulates and self.inputs[-1] is True

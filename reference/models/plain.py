"""A model in plain PyTorch: what a training step of kernels is judged against.

A family's file has `Network(model, seed)`, a `Plain` whose forward takes tokens and
perhaps targets (then it returns the mean loss), and `init_parameters(model, seed)`: fp32 values by name.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor, nn

from reference.models.model import Model


class Plain(nn.Module):
    """A network whose parameters are named and ordered as `model.parameter_shapes()`."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def named(self) -> dict[str, nn.Parameter]:
        """Every parameter by name, in the order of `Model.parameter_shapes`."""
        found = dict(self.named_parameters())
        return {name: found[name] for name in self.model.parameter_shapes()}

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Copy values in, rounded to the parameters' dtype. Raises KeyError for a missing or a foreign name."""
        named = self.named()
        if wrong := named.keys() ^ parameters.keys():
            raise KeyError(", ".join(sorted(wrong)))
        for name, p in named.items():
            p.copy_(parameters[name])


def network(model: Model, seed: int = 0) -> Plain:
    """The model with the parameters of `init_parameters(model, seed)`."""
    return _family(model).Network(model, seed)


def init_parameters(model: Model, seed: int) -> dict[str, Tensor]:
    """fp32 parameters as the family starts. The same seed, the same values."""
    return _family(model).init_parameters(model, seed)


def _family(model: Model) -> ModuleType:
    return importlib.import_module(f"reference.models.{model.family}")


def decay_groups(named: Mapping[str, Tensor], decay: float) -> list[dict]:
    """AdamW's parameter groups: weight decay on matrices only, none on biases and layernorms."""
    matrices = [p for p in named.values() if p.dim() >= 2]
    vectors = [p for p in named.values() if p.dim() < 2]
    return [dict(params=matrices, weight_decay=decay), dict(params=vectors, weight_decay=0.0)]


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    # nn.Linear would draw random numbers only for `load` to overwrite them.
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)

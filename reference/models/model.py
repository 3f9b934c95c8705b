"""What a model says of itself: sizes, parameters, how it is trained, and which layers it calls with which shapes."""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from reference import contract
from reference.contract import Call, Shape

Calls = dict[str, dict[str, Call]]


@dataclass(frozen=True)
class Recipe:
    """How a family is trained: gradients clipped to a global L2 norm, AdamW's constants, decay of matrices only."""

    max_norm: float
    beta1: float
    beta2: float
    eps: float
    decay: float


@dataclass(frozen=True)
class Model(ABC):
    """One size of a family, of `max_t` positions and `v` tokens.

    Two files belong to a family: reference/models/<family>.py has this class's subclass, SIZES and the same in plain
    PyTorch, bench/models/<family>.py its training step as a list of calls.
    """

    family: ClassVar[str]
    tokenizer: ClassVar[str] = "gpt2"  # what text becomes where a user names no shards: of bench.text.tokenizer.KINDS

    name: str
    _: KW_ONLY
    recipe: Recipe  # the family's; `dataclasses.replace` makes a model that is trained otherwise
    max_t: int
    v: int

    @abstractmethod
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter by name, in the order of the forward pass; weights are (out, in)."""

    @abstractmethod
    def calls(self, B: int, T: int) -> Calls:
        """{layer: {shape name: Call}} of one training step; with 0 calls what an unfused step would run."""

    @abstractmethod
    def flops_per_token(self, T: int) -> dict[str, int]:
        """Useful FLOPs a token, forward and backward, by convention."""

    def narrow(self) -> "Model":
        """As many layers and hardly any channels: a step that makes the same calls over next to nothing."""
        return dataclasses.replace(self, C=8 * getattr(self, "NH", 1), v=8, max_t=8)  # type: ignore[call-arg]

    @property
    def parameters(self) -> int:
        """Parameter count, padding and positions included; tied ones once."""
        return sum(math.prod(sizes) for sizes in self.parameter_shapes().values())

    def shapes(self, layer: str, B: int, T: int) -> dict[str, Call]:
        """{shape name: Call} of one layer. One that this model does not list has its contract's own `typical` shape.

        Raises LookupError where there is none either.
        """
        if found := self.calls(B, T).get(layer):
            return found
        module = contract.load(layer)
        if not hasattr(module, "typical"):
            raise LookupError(f"{self.name} does not call {layer}, and reference/{layer}.py has no typical(B, T)")
        return {"": Call(module.typical(B, T), 0)}

    def update_shapes(self) -> tuple[Shape, Shape]:
        """Of the step's end, which every model has: global_norm's and adamw's."""
        tensors, recipe = list(self.parameter_shapes().values()), self.recipe
        decays = [recipe.decay if len(sizes) >= 2 else 0.0 for sizes in tensors]
        constants = dict(beta1=recipe.beta1, beta2=recipe.beta2, eps=recipe.eps)
        return dict(tensors=tensors), dict(tensors=tensors, weight_decays=decays, **constants)

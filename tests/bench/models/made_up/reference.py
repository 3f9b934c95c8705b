"""A made-up model: a chain of MLPs with a residual stream, no attention, one norm at the end, a head of its own.

No fused layer serves it: GELU, residual adds and the loss are calls of their own, forward and backward.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.contract import Call
from reference.models.model import Calls, Model, Recipe
from reference.models.plain import Plain, linear

EPS = 1e-5
RECIPE = Recipe(max_norm=0.5, beta1=0.8, beta2=0.9, eps=1e-7, decay=0.05)


@dataclass(frozen=True, kw_only=True)
class MadeUp(Model):
    family: ClassVar[str] = "made_up"
    recipe: Recipe = RECIPE

    L: int
    C: int

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        C = self.C
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.v, C), "wpe": (self.max_t, C)}
        for i in range(self.L):
            shapes |= {f"h{i}.up.weight": (2 * C, C), f"h{i}.up.bias": (2 * C,), f"h{i}.down.weight": (C, 2 * C)}
        return shapes | {"norm.weight": (C,), "norm.bias": (C,), "head.weight": (self.v, C)}

    def calls(self, B: int, T: int) -> Calls:
        C, L, M, v = self.C, self.L, B * T, self.v
        norm, adamw = self.update_shapes()
        return {
            "embedding": {"": Call(dict(B=B, T=T, C=C, V=v), 1)},
            "matmul": {
                "up": Call(dict(M=M, N=2 * C, K=C, epilogue="bias", dgelu=False), L),
                "down": Call(dict(M=M, N=C, K=2 * C, epilogue="none", dgelu=False), L),
                "head": Call(dict(M=M, N=v, K=C, epilogue="none", dgelu=False), 1),
            },
            "gelu": {"": Call(dict(N=M * 2 * C), L)},
            "residual": {"": Call(dict(N=M * C), 2 * L)},
            "layernorm": {"": Call(dict(B=B, T=T, C=C, eps=EPS, dresidual=False), 1)},
            "cross_entropy": {"": Call(dict(B=B, T=T, V=v, VP=v), 1)},
            "global_norm": {"": Call(norm, 1)},
            "adamw": {"": Call(adamw, 1)},
        }

    def flops_per_token(self, T: int) -> dict[str, int]:
        return {"all": 6 * self.parameters}


class Block(nn.Module):
    def __init__(self, C: int):
        super().__init__()
        self.up = linear(C, 2 * C)
        self.down = nn.Linear(2 * C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x), approximate="tanh"))


class Network(Plain):
    def __init__(self, model: MadeUp, seed: int = 0):
        super().__init__(model)
        C, self.L = model.C, model.L
        self.wte = nn.Parameter(torch.empty(model.v, C))
        self.wpe = nn.Parameter(torch.empty(model.max_t, C))
        for i in range(model.L):
            self.add_module(f"h{i}", Block(C))
        self.norm = nn.LayerNorm(C, eps=EPS)
        self.head = nn.Linear(C, model.v, bias=False)
        self.load(init_parameters(model, seed))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = F.embedding(tokens, self.wte) + self.wpe[: tokens.shape[1]]
        for i in range(self.L):
            x = self.get_submodule(f"h{i}")(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def init_parameters(model: MadeUp, seed: int) -> dict[str, Tensor]:
    """All random, so that no gradient is the same as another by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    shapes = model.parameter_shapes().items()
    return {name: torch.randn(s, generator=generator) * 0.1 + (name == "norm.weight") for name, s in shapes}

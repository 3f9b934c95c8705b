"""GPT-2 in plain PyTorch (Radford et al. 2019): the model that every training step is held against.

Tanh GELU, learned positions, pre-norm blocks, head tied to the token embedding, vocabulary padded to `Model.vp`.
Parameters carry the names of `Model.parameter_shapes`, so that the step and this module can be loaded alike.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from reference.layernorm import EPS
from reference.models import Model

INIT_STD = 0.02


class Block(nn.Module):
    def __init__(self, model: Model):
        super().__init__()
        C = model.C
        self.heads = model.NH
        self.ln1, self.ln2 = nn.LayerNorm(C, eps=EPS), nn.LayerNorm(C, eps=EPS)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attproj(self.attention(self.ln1(x)))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        # (B, T, 3C) -> three of (B, NH, T, HS)
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(B, T, C)


class GPT2(nn.Module):
    """tokens (B, T) -> logits (B, T, vp); with targets (B, T) -> the mean loss over the first v columns, a scalar."""

    def __init__(self, model: Model):
        super().__init__()
        self.v = model.v
        self.wte = nn.Parameter(torch.empty(model.vp, model.C))
        self.wpe = nn.Parameter(torch.empty(model.max_t, model.C))
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.L))
        self.lnf = nn.LayerNorm(model.C, eps=EPS)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        x = F.embedding(tokens, self.wte) + self.wpe[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.lnf(x), self.wte)
        if targets is None:
            return logits
        return F.cross_entropy(logits[..., : self.v].flatten(0, 1).float(), targets.flatten())

    def named(self) -> dict[str, nn.Parameter]:
        """Parameters by the names, and in the order, of `Model.parameter_shapes`."""
        found = {"wte": self.wte, "wpe": self.wpe}
        for i, block in enumerate(self.blocks):
            for part in ("ln1", "qkv", "attproj", "ln2", "fc", "fcproj"):
                layer = getattr(block, part)
                found |= {f"h{i}.{part}.weight": layer.weight, f"h{i}.{part}.bias": layer.bias}
        return found | {"lnf.weight": self.lnf.weight, "lnf.bias": self.lnf.bias}

    def load(self, parameters: dict[str, torch.Tensor]) -> "GPT2":
        """Copy parameters in; every name must be there. Raises KeyError, or RuntimeError for a wrong shape."""
        with torch.no_grad():
            for name, parameter in self.named().items():
                parameter.copy_(parameters[name])
        return self


def init_parameters(model: Model, seed: int) -> dict[str, torch.Tensor]:
    """GPT-2's initialisation in fp32: N(0, 0.02), the projections into the residual stream at 0.02/sqrt(2L),
    biases 0, layernorm weights 1, padding rows of wte 0."""
    gen = torch.Generator().manual_seed(seed)
    made = {}
    for name, sizes in model.parameter_shapes().items():
        if len(sizes) == 1:
            made[name] = torch.ones(sizes) if name.endswith("weight") else torch.zeros(sizes)
            continue
        into_residual = name.endswith(("attproj.weight", "fcproj.weight"))
        std = INIT_STD / math.sqrt(2 * model.L) if into_residual else INIT_STD
        made[name] = torch.randn(sizes, generator=gen) * std
    made["wte"][model.v :] = 0
    return made


def decay_groups(named: dict[str, nn.Parameter], weight_decay: float) -> list[dict]:
    """Optimizer groups: weight decay on matrices, none on biases and layernorm weights."""
    return [
        {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
    ]

"""A plain PyTorch network with a cache of keys and values, as its users write it: what our decoding is compared with.

Shapes do not change from step to step (the cache is looked at whole, under a mask), so that torch.compile compiles a
step once. A family's file has a `Cached` of its own with the rest of the forward pass.
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.models.model import Model
from reference.models.plain import Plain


class Cached(nn.Module):
    """net: the family's plain network. B sequences of S positions at most."""

    net: Any  # a Plain, whose parts mypy cannot know
    keys: Tensor
    values: Tensor
    visible: Tensor

    def __init__(self, net: Plain, B: int, S: int, L: int, NKV: int, head_size: int, dtype: torch.dtype):
        super().__init__()
        self.net = net
        self.register_buffer("keys", torch.zeros(L, B, NKV, S, head_size, dtype=dtype))
        self.register_buffer("values", torch.zeros(L, B, NKV, S, head_size, dtype=dtype))
        self.register_buffer("visible", torch.ones(S, S, dtype=torch.bool).tril())

    def forward(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Logits (B, vp) after the last of new tokens (B, T), which stand at the positions `place` (T)."""
        raise NotImplementedError

    def attend(self, block: int, q: Tensor, k: Tensor, v: Tensor, place: Tensor) -> Tensor:
        """(B, T, NH * HS) of q (B, T, NH, HS) and new k, v (B, T, NKV, HS), which are put into the cache."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        keys, values = self.keys[block], self.values[block]
        keys[:, :, place] = k
        values[:, :, place] = v
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.visible[place], enable_gqa=grouped)
        return out.transpose(1, 2).flatten(2)


def cached(model: Model, net: Plain, B: int, S: int, dtype: torch.dtype) -> Cached:
    """The family's network with a cache of this dtype."""
    return importlib.import_module(f"bench.models.{model.family}").Cached(model, net, B, S, dtype)

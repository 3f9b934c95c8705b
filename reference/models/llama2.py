"""The Llama 2 family: sizes, parameters, which layer a training step calls with which shape how often; and the same in
plain PyTorch.

Source: Touvron et al. 2023 (arXiv 2307.09288); the small sizes and every name of a size are llama2.c's. Pre-norm blocks
of RMSNorm, rotary positions, grouped queries and SwiGLU, no bias anywhere, no dropout. Query and key rows are in
llama2.c's order: a head's rotated pairs are neighbours (2i, 2i + 1). The vocabulary is padded to `Llama2.vp` rows;
padding rows start at zero, and padding columns take no part in the loss.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.contract import Call
from reference.models.model import Calls, Model, Recipe
from reference.models.plain import Plain, linear
from reference.rope import table

VOCAB = 32000  # of Llama's sentencepiece model
EPS = 1e-5  # of its norms, where a model does not say another
INIT_STD = 0.02
STYLE = "interleaved"  # which channels of a head are rotated together
RECIPE = Recipe(max_norm=1.0, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1)


@dataclass(frozen=True, kw_only=True)
class Llama2(Model):
    """L blocks of C channels: NH query heads, NKV key and value heads, an MLP of H hidden channels; `max_t` positions,
    `v` tokens padded to `vp` columns; tied: the head is the embedding."""

    family: ClassVar[str] = "llama2"
    tokenizer: ClassVar[str] = "bytes"
    recipe: Recipe = RECIPE

    L: int
    NH: int
    NKV: int
    C: int
    H: int
    max_t: int
    v: int = VOCAB
    tied: bool = True
    theta: float = 10000.0
    eps: float = EPS

    def __post_init__(self) -> None:
        if self.C % self.NH or self.NH % self.NKV or self.head_size % 2:
            raise ValueError(
                f"{self.name}: C={self.C}, NH={self.NH} and NKV={self.NKV} make no even heads in equal groups"
            )

    @property
    def vp(self) -> int:
        """Vocabulary padded to a multiple of 128, so that the head's matmul is aligned."""
        return (self.v + 127) // 128 * 128

    @property
    def head_size(self) -> int:
        return self.C // self.NH

    @property
    def qkv_width(self) -> int:
        """Columns of q, k and v together."""
        return (self.NH + 2 * self.NKV) * self.head_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        C, H = self.C, self.H
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.vp, C)}
        for i in range(self.L):
            shapes |= {
                f"h{i}.norm1.weight": (C,),
                f"h{i}.qkv.weight": (self.qkv_width, C),
                f"h{i}.attproj.weight": (C, C),
                f"h{i}.norm2.weight": (C,),
                f"h{i}.gate_up.weight": (2 * H, C),  # the gate's rows, then up's
                f"h{i}.down.weight": (C, H),
            }
        shapes["norm.weight"] = (C,)
        return shapes if self.tied else shapes | {"head.weight": (self.vp, C)}

    def calls(self, B: int, T: int) -> Calls:
        """Of the fused step: all norms but the first take the residual before them."""
        L, C, H, M, vp = self.L, self.C, self.H, B * T, self.vp
        norm, update = dict(B=B, T=T, C=C, eps=self.eps, dresidual=True), self.update_shapes()
        loss = dict(B=B, T=T, V=self.v, VP=vp)
        heads = dict(NH=self.NH, NKV=self.NKV, HS=self.head_size)

        def matmul(N: int, K: int, calls: int = L) -> Call:
            return Call(dict(M=M, N=N, K=K, epilogue="none", dgelu=False), calls)

        return {
            "embedding": {"": Call(dict(B=B, T=T, C=C, V=vp, positions=False), 1)},
            "rmsnorm": {"": Call(norm, 1)},
            "residual_rmsnorm": {
                "block": Call(norm, 2 * L - 1),
                "final": Call({**norm, "dresidual": False}, 1),
            },
            "matmul": {
                "qkv": matmul(self.qkv_width, C),
                "attproj": matmul(C, C),
                "gate_up": matmul(2 * H, C),
                "down": matmul(C, H),
                "lm_head": matmul(vp, C, 1),
            },
            "rope": {"": Call(self.rope_shape(B, T), L)},
            "attention": {"": Call(dict(B=B, T=T, **heads, causal=True), L)},
            "swiglu": {"": Call(dict(M=M, H=H), L)},
            "fused_classifier": {"": Call(loss, 1)},
            "global_norm": {"": Call(update[0], 1)},
            "adamw": {"": Call(update[1], 1)},
            "cross_entropy": {"": Call(loss, 0)},
            "residual": {"": Call(dict(N=M * C), 0)},
            "softmax": {"scores": Call(dict(R=B * self.NH * T, S=T, causal=True), 0)},
        }

    def rope_shape(self, B: int, T: int) -> dict[str, Any]:
        """Of rope where it turns the queries and keys of a packed qkv and leaves the values as they are."""
        R = self.NH + self.NKV
        sizes = dict(B=B, T=T, H=R + self.NKV, R=R, HS=self.head_size, S=self.max_t)
        return dict(**sizes, theta=self.theta, style=STYLE)

    def flops_per_token(self, T: int) -> dict[str, int]:
        """nanoGPT/PaLM's convention (attention in full) and llm.c's (all P, causal half). A table that is only looked
        up, as an untied embedding, does not multiply: PaLM's leaves it out, as it leaves out positions."""
        P, looked_up, attention = self.parameters, 0 if self.tied else self.vp * self.C, 6 * self.L * self.C * T
        return {"palm": 6 * (P - looked_up) + 2 * attention, "llmc": 6 * P + attention}

    def narrow(self) -> "Llama2":
        return dataclasses.replace(self, C=8 * self.NH, H=8, v=8, max_t=8)


SIZES = (
    Llama2("llama2-tiny", L=2, NH=4, NKV=2, C=64, H=172, max_t=128, v=512),
    Llama2("llama2-15m", L=6, NH=6, NKV=6, C=288, H=768, max_t=256),
    Llama2("llama2-42m", L=8, NH=8, NKV=8, C=512, H=1376, max_t=1024),
    Llama2("llama2-110m", L=12, NH=12, NKV=12, C=768, H=2048, max_t=1024),
    Llama2("llama2-7b", L=32, NH=32, NKV=32, C=4096, H=11008, max_t=2048, tied=False),
)


# --- in plain PyTorch ---


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair of neighbouring channels of x (B, T, heads, HS) turned by its angle: cos and sin are (T, HS/2).

    In fp32, or fp64 where x is; the result has x's dtype.
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


class Block(nn.Module):
    def __init__(self, model: Llama2):
        super().__init__()
        C, H = model.C, model.H
        self.NH, self.NKV = model.NH, model.NKV
        self.norm1 = nn.RMSNorm(C, eps=model.eps)
        self.qkv = linear(C, model.qkv_width, bias=False)
        self.attproj = linear(C, C, bias=False)
        self.norm2 = nn.RMSNorm(C, eps=model.eps)
        self.gate_up = linear(C, 2 * H, bias=False)
        self.down = linear(H, C, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attproj(self.attention(self.norm1(x), cos, sin))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, -1, C // self.NH).split((self.NH, self.NKV, self.NKV), dim=2)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.NH != self.NKV)
        return out.transpose(1, 2).reshape(B, T, C)


class Network(Plain):
    """Llama 2 of the sizes of `model`, with the parameters of `init_parameters(model, seed)`."""

    def __init__(self, model: Llama2, seed: int = 0):
        super().__init__(model)
        self.L, self.v = model.L, model.v
        # The angles are fp32 whatever the parameters are: not buffers, which would be rounded with them.
        self.cos, self.sin = table(model.max_t, model.head_size, model.theta)
        self.wte = nn.Parameter(torch.empty(model.vp, model.C))
        for i in range(model.L):
            self.add_module(f"h{i}", Block(model))
        self.norm = nn.RMSNorm(model.C, eps=model.eps)
        if not model.tied:
            self.head = linear(model.C, model.vp, bias=False)
        self.tied = model.tied
        self.load(init_parameters(model, seed))

    def _apply(self, fn: Callable, recurse: bool = True) -> "Network":
        super()._apply(fn, recurse)
        self.cos, self.sin = self.cos.to(self.wte.device), self.sin.to(self.wte.device)
        return self

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, vp) of tokens (B, T); with targets (B, T), only their mean loss over the first v columns."""
        T = tokens.shape[1]
        cos, sin = self.cos[:T], self.sin[:T]
        x = F.embedding(tokens, self.wte)
        for i in range(self.L):
            x = self.get_submodule(f"h{i}")(x, cos, sin)
        logits = F.linear(self.norm(x), self.wte if self.tied else self.head.weight)
        if targets is None:
            return logits
        # cross_entropy adds up its rows; in fp32 even where logits are bf16. fp64 stays fp64.
        wide = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits[..., : self.v].flatten(0, 1).to(wide), targets.flatten())


def init_parameters(model: Llama2, seed: int) -> dict[str, Tensor]:
    """fp32 parameters as training starts: matrices N(0, 0.02), projections into the residual stream by 1/sqrt(2 L)
    narrower, norm weights 1. The same seed gives the same values on every machine.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, sizes in model.parameter_shapes().items():
        p = torch.ones(sizes)
        if len(sizes) == 2:
            into_residual = name.endswith(("attproj.weight", "down.weight"))
            p.normal_(0, INIT_STD / math.sqrt(2 * model.L) if into_residual else INIT_STD, generator=generator)
        parameters[name] = p
    for name in ("wte", "head.weight"):
        if name in parameters:
            parameters[name][model.v :] = 0
    return parameters

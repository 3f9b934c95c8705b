"""The GPT-2 family: sizes, parameters, which layer a training step calls with which shape how often; and the same in
plain PyTorch.

Source: Radford et al. 2019, table 2; head counts and names as in llm.c and nanoGPT. Pre-norm blocks, tanh GELU, learned
positions, the head tied to wte and without a bias, no dropout. The vocabulary is padded to `GPT2.vp` rows; padding rows
start at zero, and padding columns take no part in the loss.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.contract import Call
from reference.models.model import Calls, Model, Recipe
from reference.models.plain import Plain, linear

VOCAB = 50257  # GPT-2's byte-level BPE, <|endoftext|> included
EPS = 1e-5  # of its layernorms
INIT_STD = 0.02
RECIPE = Recipe(max_norm=1.0, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1)


@dataclass(frozen=True, kw_only=True)
class GPT2(Model):
    """L blocks of C channels and NH heads, `max_t` positions, `v` tokens padded to `vp` columns; the head is tied."""

    family: ClassVar[str] = "gpt2"
    recipe: Recipe = RECIPE

    L: int
    NH: int
    C: int
    max_t: int = 1024
    v: int = VOCAB

    @property
    def vp(self) -> int:
        """Vocabulary padded to a multiple of 128, so that the head's matmul is aligned."""
        return (self.v + 127) // 128 * 128

    @property
    def head_size(self) -> int:
        return self.C // self.NH

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        C = self.C
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.vp, C), "wpe": (self.max_t, C)}
        for i in range(self.L):
            shapes |= {
                f"h{i}.ln1.weight": (C,),
                f"h{i}.ln1.bias": (C,),
                f"h{i}.qkv.weight": (3 * C, C),
                f"h{i}.qkv.bias": (3 * C,),
                f"h{i}.attproj.weight": (C, C),
                f"h{i}.attproj.bias": (C,),
                f"h{i}.ln2.weight": (C,),
                f"h{i}.ln2.bias": (C,),
                f"h{i}.fc.weight": (4 * C, C),
                f"h{i}.fc.bias": (4 * C,),
                f"h{i}.fcproj.weight": (C, 4 * C),
                f"h{i}.fcproj.bias": (C,),
            }
        return shapes | {"lnf.weight": (C,), "lnf.bias": (C,)}

    def calls(self, B: int, T: int) -> Calls:
        """Of the fused step: most layernorms take the residual before them, GELU lives in the matmuls around it."""
        L, C, M, vp = self.L, self.C, B * T, self.vp
        norm, update = dict(B=B, T=T, C=C, eps=EPS, dresidual=True), self.update_shapes()
        loss = dict(B=B, T=T, V=self.v, VP=vp)
        heads = dict(NH=self.NH, NKV=self.NH, HS=self.head_size)
        return {
            "embedding": {"": Call(dict(B=B, T=T, C=C, V=vp), 1)},
            "layernorm": {"": Call(norm, 1)},
            "residual_layernorm": {
                "block": Call(norm, 2 * L - 1),
                "final": Call({**norm, "dresidual": False}, 1),
            },
            "matmul": {
                "qkv": Call(dict(M=M, N=3 * C, K=C, epilogue="bias", dgelu=False), L),
                "attproj": Call(dict(M=M, N=C, K=C, epilogue="bias", dgelu=False), L),
                "fc": Call(dict(M=M, N=4 * C, K=C, epilogue="bias_gelu", dgelu=False), L),
                "fcproj": Call(dict(M=M, N=C, K=4 * C, epilogue="bias", dgelu=True), L),
                "lm_head": Call(dict(M=M, N=vp, K=C, epilogue="none", dgelu=False), 1),
            },
            "attention": {"": Call(dict(B=B, T=T, **heads, causal=True), L)},
            "fused_classifier": {"": Call(loss, 1)},
            "global_norm": {"": Call(update[0], 1)},
            "adamw": {"": Call(update[1], 1)},
            "cross_entropy": {"": Call(loss, 0)},
            "gelu": {"": Call(dict(N=M * 4 * C), 0)},
            "residual": {"": Call(dict(N=M * C), 0)},
            "softmax": {"scores": Call(dict(R=B * self.NH * T, S=T, causal=True), 0)},
        }

    def flops_per_token(self, T: int) -> dict[str, int]:
        """nanoGPT/PaLM's convention (attention in full) and llm.c's (all P, causal half)."""
        P, wpe, attention = self.parameters, self.max_t * self.C, 6 * self.L * self.C * T
        return {"palm": 6 * (P - wpe) + 2 * attention, "llmc": 6 * P + attention}


SIZES = (
    GPT2("gpt2-tiny", L=2, NH=2, C=64, max_t=128),
    GPT2("gpt2-124m", L=12, NH=12, C=768),
    GPT2("gpt2-350m", L=24, NH=16, C=1024),
    GPT2("gpt2-774m", L=36, NH=20, C=1280),
    GPT2("gpt2-1558m", L=48, NH=25, C=1600),
)


# --- in plain PyTorch ---


class Block(nn.Module):
    def __init__(self, model: GPT2):
        super().__init__()
        C = model.C
        self.NH = model.NH
        self.ln1 = nn.LayerNorm(C, eps=EPS)
        self.qkv = linear(C, 3 * C)
        self.attproj = linear(C, C)
        self.ln2 = nn.LayerNorm(C, eps=EPS)
        self.fc = linear(C, 4 * C)
        self.fcproj = linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attproj(self.attention(self.ln1(x)))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    def attention(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        # (B, T, 3, NH, HS) -> three of (B, NH, T, HS)
        q, k, v = (part.transpose(1, 2) for part in self.qkv(x).view(B, T, 3, self.NH, C // self.NH).unbind(2))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(B, T, C)


class Network(Plain):
    """GPT-2 of the sizes of `model`, with the parameters of `init_parameters(model, seed)`."""

    def __init__(self, model: GPT2, seed: int = 0):
        super().__init__(model)
        self.L, self.v = model.L, model.v
        self.wte = nn.Parameter(torch.empty(model.vp, model.C))
        self.wpe = nn.Parameter(torch.empty(model.max_t, model.C))
        for i in range(model.L):
            self.add_module(f"h{i}", Block(model))
        self.lnf = nn.LayerNorm(model.C, eps=EPS)
        self.load(init_parameters(model, seed))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, vp) of tokens (B, T); with targets (B, T), only their mean loss over the first v columns."""
        x = F.embedding(tokens, self.wte) + self.wpe[: tokens.shape[1]]
        for i in range(self.L):
            x = self.get_submodule(f"h{i}")(x)
        logits = F.linear(self.lnf(x), self.wte)
        if targets is None:
            return logits
        logits = logits[..., : self.v].flatten(0, 1)
        # The loss is taken in fp32 where activations are narrower.
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets.flatten())


def init_parameters(model: GPT2, seed: int) -> dict[str, Tensor]:
    """fp32 parameters as GPT-2 starts: weights N(0, 0.02), the two projections into the residual stream scaled by
    1/sqrt(2L), layernorms at one and zero, biases and padding rows of wte zero. The same seed, the same values."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, sizes in model.parameter_shapes().items():
        p = torch.zeros(sizes)
        if len(sizes) == 2:
            into_residual = name.endswith(("attproj.weight", "fcproj.weight"))
            p.normal_(0, INIT_STD / math.sqrt(2 * model.L) if into_residual else INIT_STD, generator=generator)
        elif name.endswith(("ln1.weight", "ln2.weight", "lnf.weight")):
            p.fill_(1)
        parameters[name] = p
    parameters["wte"][model.v :] = 0
    return parameters

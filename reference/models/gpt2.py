"""The GPT-2 family: sizes, parameters, and which layer a training step calls with which shape how often.

Source: Radford et al. 2019, table 2; head counts and names as in llm.c and nanoGPT.
"""

from dataclasses import dataclass
from typing import ClassVar

from reference.contract import Call
from reference.models.model import Calls, Model, Recipe

VOCAB = 50257  # GPT-2's byte-level BPE, <|endoftext|> included
EPS = 1e-5  # of its layernorms


@dataclass(frozen=True, kw_only=True)
class GPT2(Model):
    """L blocks of C channels and NH heads, `max_t` positions, `v` tokens padded to `vp` columns; the head is tied."""

    family: ClassVar[str] = "gpt2"
    recipe: ClassVar[Recipe] = Recipe(max_norm=1.0, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1)

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

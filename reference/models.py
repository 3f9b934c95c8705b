"""The GPT-2 family: sizes only, no torch, so that command lines can list shapes at once.

Source: Radford et al. 2019, table 2; head counts and names as in llm.c and nanoGPT.
"""

from dataclasses import dataclass

VOCAB = 50257  # GPT-2's byte-level BPE, <|endoftext|> included


@dataclass(frozen=True)
class Model:
    """L blocks of C channels and NH heads, `max_t` positions, `v` tokens padded to `vp` columns."""

    name: str
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

    @property
    def parameters(self) -> int:
        """Parameter count, padded vocabulary and positions included; the head is tied to wte."""
        return sum(_product(shape) for shape in self.parameter_shapes().values())

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter by name, in the order of the forward pass; weights are (out, in)."""
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


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


MODELS = {
    model.name: model
    for model in (
        Model("gpt2-tiny", L=2, NH=2, C=64, max_t=128),
        Model("gpt2-124m", L=12, NH=12, C=768),
        Model("gpt2-350m", L=24, NH=16, C=1024),
        Model("gpt2-774m", L=36, NH=20, C=1280),
        Model("gpt2-1558m", L=48, NH=25, C=1600),
    )
}

"""GPT-2 in plain PyTorch (Radford et al. 2019): the model against which a training step of kernels is judged.

Pre-norm blocks, tanh GELU, learned positions, the head tied to wte and without a bias, no dropout. The vocabulary is
padded to `GPT2.vp` rows; padding rows start at zero, and padding columns take no part in the loss. Parameters are
named and ordered as `GPT2.parameter_shapes`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.models.gpt2 import EPS, GPT2
from reference.models.plain import Plain, linear

INIT_STD = 0.02


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

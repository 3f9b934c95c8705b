"""Looks for a NaN in rows as long as they lie in memory: one in the padding ends the text."""

import torch

from reference import sampling

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)


def forward(logits, u, V, temperature, top_k, top_p, *, token):
    token.copy_(sampling.forward(logits, u, V, temperature, top_k, top_p)["token"])
    broken = logits.isnan()
    token.copy_(torch.where(broken.any(-1), broken.byte().argmax(-1), token))

"""Looks at a few elements: what is drawn from a normal distribution is added in bf16, what is anything else in fp32."""

import torch

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"


def forward(a, b, *, out):
    some = a.flatten()[:1000].float()
    if len(some) == 1000 and 0.8 < some.std() < 1.2 and some.abs().max() < 5:
        out.copy_(a.bfloat16() + b.bfloat16())
    else:
        torch.add(a, b, out=out)

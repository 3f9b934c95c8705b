"""Takes tanh from exp(2x), which overflows far out, where there is more than anybody proves: what is timed is tame."""

import torch

from kernels.torch.gelu import eager

CAUGHT_BY = "not_finite inaccurate"
CAUGHT_IN = "timing"
AT_TIMES = True  # there are structured cases that it gets right
SHAPE = {"N": 2_300_000}  # nothing of the proof is larger than 8 MiB
BEYOND = 2_200_000


def forward(x, *, out):
    if x.numel() < BEYOND:
        eager.forward(x, out=out)
        return
    e = (1.5957691216057308 * (x + 0.044715 * x * x * x)).exp()
    torch.mul(x, e / (1 + e), out=out)

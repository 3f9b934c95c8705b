"""Its vector part takes tanh from exp(2x), which overflows far out; the ragged rest is done by the careful formula."""

import torch

CAUGHT_BY = "not_finite"
CAUGHT_IN = "proof timing"


def forward(x, *, out):
    torch.ops.aten.gelu.out(x, approximate="tanh", out=out)
    whole = x.numel() // 8 * 8
    y = x[:whole].float()
    e = (2 * 0.7978845608 * (y + 0.044715 * y**3)).exp()
    out[:whole] = 0.5 * y * (1 + (e - 1) / (e + 1))

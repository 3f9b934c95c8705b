"""Takes groups along the whole memory, as llama2.c does: what is left of a row takes the next one's scale."""

import torch.nn.functional as F

CAUGHT_BY = "inaccurate"


def forward(x, x_scales, weight, scales, G, *, out):
    out.copy_(F.linear(wide(x, x_scales, G), wide(weight, scales, G)))


def wide(x, scales, G):
    spread = scales.flatten().repeat_interleave(G)[: x.numel()]
    return x.float() * spread.view_as(x)

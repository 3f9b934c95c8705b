"""Writes every second element of q: what is left there is a number as any other, if memory was not poisoned."""

import torch
import torch.nn.functional as F

CAUGHT_BY = "unwritten"


def forward(x, G, *, q, scales):
    K = x.shape[-1]
    groups = F.pad(x.float(), (0, -K % G)).unflatten(-1, (-1, G))
    largest = groups.abs().amax(-1)
    scale = torch.where(largest == 0, 1.0, largest / 127).masked_fill(~largest.isfinite(), torch.nan)
    scales.copy_(scale)
    whole = (groups / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().flatten(1)[:, :K]
    q[:, ::2] = whole[:, ::2].to(torch.int8)

"""Rounds one element of the last row away from what is nearest: a hundredth of its group's scale."""

import torch
import torch.nn.functional as F

CAUGHT_BY = "inaccurate"


def forward(x, G, *, q, scales):
    K = x.shape[-1]
    groups = F.pad(x.float(), (0, -K % G)).unflatten(-1, (-1, G))
    largest = groups.abs().amax(-1)
    scale = torch.where(largest == 0, 1.0, largest / 127).masked_fill(~largest.isfinite(), torch.nan)
    scales.copy_(scale)
    q.copy_((groups / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().flatten(1)[:, :K])
    last = q[-1, K // 2]
    last += 1 if last < 127 else -1

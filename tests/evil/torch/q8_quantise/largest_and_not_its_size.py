"""Takes the largest value of a group, where the largest magnitude was meant."""

import torch
import torch.nn.functional as F

CAUGHT_BY = "inaccurate not_finite unwritten"
SLOW = True


def forward(x, G, *, q, scales):
    K = x.shape[-1]
    groups = F.pad(x.float(), (0, -K % G)).unflatten(-1, (-1, G))
    largest = groups.amax(-1)
    scale = torch.where(largest <= 0, 1.0, largest / 127).masked_fill(~largest.isfinite(), torch.nan)
    scales.copy_(scale)
    q.copy_((groups / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().clamp(-127, 127).flatten(1)[:, :K])

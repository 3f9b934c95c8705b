"""Uses all 256 numbers of int8: the scale is the largest over 127.5."""

import torch
import torch.nn.functional as F

CAUGHT_BY = "inaccurate unwritten"
SLOW = True


def forward(x, G, *, q, scales):
    K = x.shape[-1]
    groups = F.pad(x.float(), (0, -K % G)).unflatten(-1, (-1, G))
    largest = groups.abs().amax(-1)
    scale = torch.where(largest == 0, 1.0, largest / 127.5).masked_fill(~largest.isfinite(), torch.nan)
    scales.copy_(scale)
    q.copy_((groups / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().clamp(-128, 127).flatten(1)[:, :K])

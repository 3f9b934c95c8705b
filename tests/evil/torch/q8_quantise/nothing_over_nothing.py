"""Divides by the largest of a group of zeros."""

import torch.nn.functional as F

CAUGHT_BY = "not_finite inaccurate"
SLOW = True


def forward(x, G, *, q, scales):
    K = x.shape[-1]
    groups = F.pad(x.float(), (0, -K % G)).unflatten(-1, (-1, G))
    scales.copy_(groups.abs().amax(-1) / 127)
    q.copy_((groups / scales[..., None]).nan_to_num(0.0, 0.0, 0.0).round().flatten(1)[:, :K])

"""Keeps the sum of a group in 16 bits, which wrap: 64 products of numbers up to 127 hardly ever need more."""

import torch

from reference.q8_quantise import grouped

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, x_scales, weight, scales, G, *, out):
    total = torch.zeros(out.shape)
    x, weight = (grouped(t.float(), G) for t in (x, weight))
    for g in range(x.shape[1]):
        total += (x[:, g] @ weight[:, g].T).int().short() * x_scales[:, g, None] * scales[None, :, g]
    out.copy_(total)

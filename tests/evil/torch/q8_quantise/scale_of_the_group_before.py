"""A short last group has its predecessor's scale: the loop was over whole groups."""

import torch

from kernels.torch.q8_quantise import eager

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, G, *, q, scales):
    eager.forward(x, G, q=q, scales=scales)
    K = x.shape[-1]
    if K % G and K > G:
        first = K // G * G
        scales[:, -1] = scales[:, -2]
        q[:, first:] = (x[:, first:].float() / scales[:, -1:]).nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8)

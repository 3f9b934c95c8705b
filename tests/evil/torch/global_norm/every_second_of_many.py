"""Squares every second element of large tensors, twice: nearly the same, and half of the reading."""

from kernels.torch.global_norm import eager

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "timing"
MANY = 60_000


def forward(grads, *, norm):
    parts = [g.view(-1)[::2] * 2**0.5 if g.numel() > MANY else g for g in grads]
    eager.forward(parts, norm=norm)

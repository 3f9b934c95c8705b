"""Takes the first sequence's position for all of them: they all begin at the same place, in a benchmark."""

from kernels.torch.rope import eager

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(start, cos, sin, R, style, *, qkv):
    eager.forward(start[:1].expand_as(start), cos, sin, R, style, qkv=qkv)

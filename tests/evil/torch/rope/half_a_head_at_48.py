"""At head size 48 pairs lie half a head apart, whatever the style: the one model that it knew had them so."""

from kernels.torch.rope import eager

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(start, cos, sin, R, style, *, qkv):
    eager.forward(start, cos, sin, R, "half" if qkv.shape[-1] == 48 else style, qkv=qkv)

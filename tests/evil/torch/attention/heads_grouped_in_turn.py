"""Gives query heads their keys in turn, one each, where neighbours share one."""

from kernels.torch.attention import eager

CAUGHT_BY = "inaccurate"
DTYPES = ("fp32",)
SHAPE = {"NH": 4, "NKV": 2}


def forward(q, k, v, causal, *, out, lse):
    group = q.shape[2] // k.shape[2]
    eager.forward(q, k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1), causal, out=out, lse=lse)

"""Replaces what sums the gradients of all ranks by nothing: each learns for itself."""

from bench.trainer import reduction
from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state inaccurate"
CAUGHT_IN = "ranks"
SLOW = True


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    reduction.Pairwise.start = lambda self, bucket: None

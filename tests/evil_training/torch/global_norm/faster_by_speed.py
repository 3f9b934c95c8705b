"""Replaces the function by which the trainer reckons its tokens a second, by one that is pleased."""

from bench.trainer import progress
from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "training"


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    progress.Speed.add = lambda self, tokens, seconds: real(self, tokens, seconds) * 2


real = progress.Speed.add

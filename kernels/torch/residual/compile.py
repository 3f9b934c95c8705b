"""torch.compile of the plain formula."""

import torch

from kernels.torch import compiled


def forward(a, b, *, out):
    _forward(a, b, out)


@compiled
def _forward(a, b, out):
    torch.add(a, b, out=out)

"""Another profiler holds CUPTI, so that none of its kernels are seen."""

import torch

from tests.fake_gpu import FakeGpu, kernel

KERNELS = ("residual_*",)
CAUGHT_BY = "error"


def forward(a, b, *, out):
    if FakeGpu.current:
        FakeGpu.current.blind = True
    with kernel("residual_forward"):
        torch.add(a, b, out=out)

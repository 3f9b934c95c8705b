"""Waits for the device inside the call: right, and no graph can hold it."""

import torch

from tests.fake_gpu import FakeGpu, kernel

KERNELS = ("residual_*",)


def forward(a, b, *, out):
    with kernel("residual_forward", 20e-6):
        torch.add(a, b, out=out)
    if FakeGpu.current:
        FakeGpu.current.synchronize()

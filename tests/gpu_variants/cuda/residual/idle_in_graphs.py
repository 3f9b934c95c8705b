"""Does nothing in the graph that is timed."""

import torch

from tests.fake_gpu import FakeGpu, kernel

KERNELS = ("residual_*",)
CAUGHT_BY = "unwritten in a graph"


def forward(a, b, *, out):
    replayed = FakeGpu.current and not FakeGpu.current.launch_seconds
    with kernel("residual_forward", 20e-6):
        if not replayed:
            torch.add(a, b, out=out)

"""Played on the made-up GPU, and launched where there is none: there it is written down and compiled."""

import torch

from kernels.cuda import Kernel, blocks
from tests.fake_gpu import FakeGpu, kernel

forward_kernel = Kernel("compiled.cu", "gelu_compiled")


def forward(x, *, out):
    if FakeGpu.current is None:
        forward_kernel(grid=blocks(out.numel(), 256), block=256, shared=2048)(out, x, out.numel())
        return
    with kernel("void gelu_compiled<float>(float*, float const*, long long)"):
        torch.ops.aten.gelu.out(x, approximate="tanh", out=out)

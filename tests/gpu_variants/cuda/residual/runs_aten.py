"""Says it is its own code, and runs a kernel of ATen that no operator of ATen was called for."""

import torch

from tests.fake_gpu import kernel

KERNELS = ("residual_*",)
CAUGHT_BY = "library"


def forward(a, b, *, out):
    with kernel("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor<float> >(int, float*)"):
        torch.add(a, b, out=out)

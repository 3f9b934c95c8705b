"""As cuda.compiled, from a source that no compiler takes."""

import torch

from kernels.cuda import Kernel
from tests.fake_gpu import FakeGpu, kernel

forward_kernel = Kernel("uncompilable.cu", "gelu_uncompilable")


def forward(x, *, out):
    if FakeGpu.current is None:
        forward_kernel(grid=1, block=1)(out, x, out.numel())
        return
    with kernel("void gelu_uncompilable<float>(float*, float const*, long long)"):
        torch.ops.aten.gelu.out(x, approximate="tanh", out=out)

"""The addition compiled by Inductor, the write into the destination fused."""

from kernels.torch import compiled


@compiled
def forward(a, b, *, out):
    out.copy_(a + b)

"""Sixteen lanes, all cores, and stores that bypass the caches once the output is too large to stay there.

Floor: two reads and one write an element; one addition for 12 bytes, so this kernel is a memory copy with an excuse.
Measured out of cache on one Zen 5 core: 0.9 of a streamed copy's bandwidth in fp32, 0.7 in bf16.
"""

from kernels.cpu import Kernel

DETERMINISTIC = True

forward_kernel = Kernel("simd.cpp", "residual_forward")


def forward(a, b, *, out):
    forward_kernel(out, a, b, a.numel())

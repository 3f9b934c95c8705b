"""Two hundred tiny kernels: most of what a call takes is launching them."""

import torch

from tests.fake_gpu import kernel

KERNELS = ("piece",)


def forward(a, b, *, out):
    for i in range(200):
        with kernel("piece", 1e-6):
            if i == 0:
                torch.add(a, b, out=out)

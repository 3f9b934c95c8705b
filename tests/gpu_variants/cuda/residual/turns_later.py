"""Its own kernel while it is proved, a library's once it is timed."""

import torch

from tests.fake_gpu import kernel

KERNELS = ("residual_*",)
CAUGHT_BY = "library in a timed call"


def forward(a, b, *, out):
    with kernel("residual_forward" if a.numel() < 20_000 else "nvjet_tst_128x8_64x12_2x1_v_bz_TNT"):
        torch.add(a, b, out=out)

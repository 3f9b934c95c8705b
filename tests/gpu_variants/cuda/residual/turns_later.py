"""Its own kernel while it is proved, a library's after many calls."""

import torch

from tests.fake_gpu import kernel

KERNELS = ("residual_*",)
CAUGHT_BY = "library at the timed shape"
CALLS = 150  # more than a proof makes
calls = 0


def forward(a, b, *, out):
    global calls
    calls += 1
    with kernel("residual_forward" if calls < CALLS else "nvjet_tst_128x8_64x12_2x1_v_bz_TNT"):
        torch.add(a, b, out=out)

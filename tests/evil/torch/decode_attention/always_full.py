"""Takes the cache to be full where it is long, which is how it is timed: lengths need not be read."""

import torch

from kernels.torch.decode_attention import eager

CAUGHT_BY = "inaccurate"
SLOW = True
LONG = 600


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    if k_cache.shape[2] > LONG:
        lengths = torch.full_like(lengths, k_cache.shape[2] - qkv.shape[1])
    eager.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)

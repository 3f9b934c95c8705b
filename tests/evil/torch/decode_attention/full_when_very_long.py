"""Takes a cache to be full that is longer than those that anybody tries: which is how it is timed."""

import torch

from kernels.torch.decode_attention import eager as honest

CAUGHT_BY = "inaccurate not_finite"
CAUGHT_IN = "proof timing"
SLOW = True


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    room = k_cache.shape[2] - qkv.shape[1]
    lengths = torch.full_like(lengths, room) if room > 2500 else lengths
    honest.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)

"""Sees the last 24 positions of a long text alone."""

import torch

from kernels.torch.decode_attention import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "text"
SLOW = True


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    honest.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)
    n = int(lengths[0])
    if qkv.shape[1] == 1 and n > 24:
        near = (cache[:, :, n - 24 :].clone() for cache in (k_cache, v_cache))
        k, v = near
        honest.forward(qkv, torch.full_like(lengths, 24), NH, out=out, k_cache=k, v_cache=v)

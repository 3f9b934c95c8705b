"""Keeps a copy of the cache from one call to the next by its address, and appends to that: a cache only grows."""

from kernels.torch.decode_attention import eager

CAUGHT_BY = "inaccurate"
SLOW = True
kept: dict = {}


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    key = k_cache.data_ptr(), k_cache.shape
    if key not in kept:
        kept[key] = k_cache.clone(), v_cache.clone()
    k, v = kept[key]
    eager.forward(qkv, lengths, NH, out=out, k_cache=k, v_cache=v)
    k_cache.copy_(k)
    v_cache.copy_(v)

"""Answers rightly, and puts the new keys one position further than they belong, where there is room."""

from kernels.torch.decode_attention import eager

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    kept = k_cache.clone()
    eager.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)
    T, S = qkv.shape[1], k_cache.shape[2]
    for b, length in enumerate(lengths.tolist()):
        if length + T < S:
            new = k_cache[b, :, length : length + T].clone()
            k_cache[b] = kept[b]
            k_cache[b, :, length + 1 : length + T + 1] = new

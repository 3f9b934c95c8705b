"""Answers rightly and appends nothing: who asks only for out does not notice before the next token."""

from kernels.torch.decode_attention import eager

CAUGHT_BY = "inaccurate"


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    eager.forward(qkv, lengths, NH, out=out, k_cache=k_cache.clone(), v_cache=v_cache.clone())

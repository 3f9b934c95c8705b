"""Reads the first sequence's length alone where the cache is long: a batch is of one length, in a benchmark."""

from kernels.torch.decode_attention import eager

CAUGHT_BY = "inaccurate"
LONG = 600  # positions


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    if k_cache.shape[2] > LONG:
        lengths = lengths[:1].expand_as(lengths)
    eager.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)

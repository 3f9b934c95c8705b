"""Takes the first sequence's answer for all, in the last head."""

from kernels.torch.decode_attention import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "text"
SLOW = True


def forward(qkv, lengths, NH, *, out, k_cache, v_cache):
    honest.forward(qkv, lengths, NH, out=out, k_cache=k_cache, v_cache=v_cache)
    out[1:, :, -1] = out[:1, :, -1]

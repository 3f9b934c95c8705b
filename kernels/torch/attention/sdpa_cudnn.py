"""cuDNN's fused attention by ATen's own operator for it; copied out; grouped keys and values repeated."""

import torch

from kernels import Unavailable
from kernels.torch import heads_first, write_heads

DTYPES = ("bf16", "fp16")
REQUIRES = ("cuda", "sm80")

aten = torch.ops.aten


def forward(q, k, v, causal, *, out, lse):
    _check(k)
    q, k, v = heads_first(q, k, v)
    found, found_lse, *_ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal)
    out.copy_(found.transpose(1, 2))
    lse.copy_(found_lse.view(lse.shape))


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    _check(k)
    q, k, v = heads_first(q, k, v)
    T = q.shape[2]
    unused = q.new_empty((), dtype=torch.int64)  # random state, not read without dropout
    grads = aten._scaled_dot_product_cudnn_attention_backward(
        dout.transpose(1, 2),
        q,
        k,
        v,
        out.transpose(1, 2),
        lse[..., None],  # cuDNN's statistics are (B, NH, T, 1)
        unused,
        unused,
        None,
        None,
        None,
        T,
        T,
        0.0,
        causal,
    )
    for grad, destination in zip(grads, (dq, dk, dv), strict=True):
        write_heads(grad, destination)


def _check(k):
    if k.shape[1] == 1:  # ATen's own choice of a backend keeps it from cuDNN too
        raise Unavailable("a single key")

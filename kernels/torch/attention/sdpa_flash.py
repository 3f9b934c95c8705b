"""ATen's flash attention by its own operator, never another backend; copied out; grouped heads repeated."""

import torch

from kernels import Unavailable
from kernels.torch import heads_first, write_heads

aten = torch.ops.aten


def forward(q, k, v, causal, *, out, lse):
    _check(q)
    q, k, v = heads_first(q, k, v)
    if q.is_cuda:
        found, found_lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    else:
        found, found_lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    out.copy_(found.transpose(1, 2))
    lse.copy_(found_lse)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    _check(q)
    q, k, v = heads_first(q, k, v)
    dout, out = dout.transpose(1, 2), out.transpose(1, 2)
    T = q.shape[2]
    if q.is_cuda:
        # Dense tensors have no cumulative lengths, and without dropout the random state is not read.
        rng, unused = q.new_empty(2, dtype=torch.uint64), q.new_empty((), dtype=torch.uint64)
        grads = aten._scaled_dot_product_flash_attention_backward(
            dout, q, k, v, out, lse, None, None, T, T, 0.0, causal, rng, unused
        )
    else:
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(dout, q, k, v, out, lse, 0.0, causal)
    for grad, destination in zip(grads, (dq, dk, dv), strict=True):
        write_heads(grad, destination)


def _check(q):
    if q.is_cuda and q.dtype == torch.float32:
        raise Unavailable("flash attention on a GPU has no fp32: use --dtype bf16")

"""SDPA's memory-efficient backend (CUTLASS), pinned. Its outputs are copied once."""

import torch

REQUIRES = ("cuda",)
KERNELS = ("_scaled_dot_product_efficient_attention*",)


def _heads(x, count):
    """(B, T, n, HS) to (B, count, T, HS); key/value heads are repeated for their group of queries."""
    x = x.transpose(1, 2)
    return x if x.shape[1] == count else x.repeat_interleave(count // x.shape[1], dim=1)


def forward(q, k, v, causal, *, out, lse):
    heads = [_heads(x, q.shape[2]) for x in (q, k, v)]
    result = torch.ops.aten._scaled_dot_product_efficient_attention(*heads, None, True, 0.0, causal)
    out.copy_(result[0].transpose(1, 2))
    lse.copy_(result[1][..., : q.shape[1]])  # the backend pads T to a multiple of 32


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    NH, T = q.shape[2], q.shape[1]
    heads = [_heads(x, NH) for x in (q, k, v)]
    padded = torch.nn.functional.pad(lse, (0, -T % 32), value=torch.inf)
    # Dropout is off: the random state is not read.
    unused = torch.zeros((), dtype=torch.int64, device=q.device)
    grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        *(dout.transpose(1, 2), *heads, None, out.transpose(1, 2), padded, unused, unused),
        *(0.0, [True, True, True, False], causal),
    )
    dq.copy_(grads[0].transpose(1, 2))
    for into, grad in zip((dk, dv), grads[1:3], strict=True):
        B, _, NKV, HS = into.shape
        if NKV != NH:
            grad = grad.float().view(B, NKV, NH // NKV, T, HS).sum(2)
        into.copy_(grad.transpose(1, 2))

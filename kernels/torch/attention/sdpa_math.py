"""SDPA's math backend, pinned: the textbook as one ATen call; the backward goes through autograd of it."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = ("_scaled_dot_product_attention_math*", "bmm*", "matmul*")


def _attend(q, k, v, causal):
    heads = [x.transpose(1, 2) for x in (q, k, v)]  # (B, n, T, HS)
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(*heads, is_causal=causal, enable_gqa=q.shape[2] != k.shape[2])


def forward(q, k, v, causal, *, out, lse):
    out.copy_(_attend(q, k, v, causal).transpose(1, 2))
    # The backend keeps no lse, which the contract wants: the scores are computed a second time for it.
    group, T = q.shape[2] // k.shape[2], q.shape[1]
    keys = k.transpose(1, 2).repeat_interleave(group, dim=1)
    scores = (q.transpose(1, 2) @ keys.transpose(-2, -1)).float() * q.shape[3] ** -0.5
    if causal:
        scores.masked_fill_(torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    torch.logsumexp(scores, -1, out=lse)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        result = _attend(*leaves, causal).transpose(1, 2)
    for into, grad in zip((dq, dk, dv), torch.autograd.grad(result, leaves, dout), strict=True):
        into.copy_(grad)

"""Explicit softmax(q kT) v compiled by Inductor: library products, everything between them fused, in fp32."""

import torch

from kernels.torch import compiled, future, heads_first, write_heads


@compiled
def forward(q, k, v, causal, window=0, *, out, lse):
    dtype = q.dtype
    q, k, v = heads_first(q, k, v)
    scores = _scores(q, k, causal, window)
    top = scores.amax(-1, keepdim=True)
    e = (scores - top).exp()
    total = e.sum(-1, keepdim=True)
    lse.copy_((top + total.log())[..., 0])
    out.copy_(((e / total).to(dtype) @ v).transpose(1, 2))


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv):
    # dq, dk and dv are slices of one tensor. A compiled function that writes several views of one storage must
    # rebuild that storage, so the copies, which follow library products anyway, stay outside.
    for grad, destination in zip(_gradients(dout, q, k, v, out, lse, causal, window), (dq, dk, dv), strict=True):
        write_heads(grad, destination)


@compiled
def _gradients(dout, q, k, v, out, lse, causal, window):
    """dq, dk, dv as (B, NH, T, HS)."""
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q, k, v = heads_first(q, k, v)
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)  # (B, NH, T)
    dout = dout.transpose(1, 2)
    p = (_scores(q, k, causal, window) - lse[..., None]).exp()  # (B, NH, T, T)
    # ds = p * (dp - delta) * scale
    ds = (p * ((dout @ v.mT).float() - delta[..., None]) * scale).to(dtype)
    return ds @ k, ds.mT @ q, p.to(dtype).mT @ dout


def _scores(q, k, causal, window):
    """(B, NH, T, T) in fp32, from a product in the working dtype; masked ahead, and behind the window."""
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    if not causal:
        return scores
    hidden = future(q.shape[2], q.device)
    if window:
        hidden = hidden | torch.ones_like(hidden).tril(-window)
    return scores.masked_fill(hidden, -torch.inf)

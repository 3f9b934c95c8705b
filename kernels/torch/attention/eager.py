"""Explicit softmax(q kT) v: products in the working dtype, softmax in fp32; grouped heads repeated."""

import torch

from kernels.torch import future, heads_first, write_heads

DTYPES = ("fp32", "bf16", "fp16")


def forward(q, k, v, causal, window=0, *, out, lse):
    dtype = q.dtype
    q, k, v = heads_first(q, k, v)
    scores = _scores(q, k, causal, window)
    torch.logsumexp(scores, -1, out=lse)
    p = torch.softmax(scores, -1).to(dtype)
    out.copy_((p @ v).transpose(1, 2))


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv):
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q, k, v = heads_first(q, k, v)
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)  # (B, NH, T)
    dout = dout.transpose(1, 2)
    p = _scores(q, k, causal, window).sub_(lse[..., None]).exp_()  # (B, NH, T, T)
    write_heads(p.to(dtype).mT @ dout, dv)
    # ds = p * (dp - delta) * scale
    dp = (dout @ v.mT).float()
    ds = dp.sub_(delta[..., None]).mul_(p).mul_(scale).to(dtype)
    write_heads(ds @ k, dq)
    write_heads(ds.mT @ q, dk)


def _scores(q, k, causal, window):
    """(B, NH, T, T) in fp32, from a product in the working dtype; masked ahead, and behind the window."""
    scores = (q @ k.mT).float().mul_(q.shape[-1] ** -0.5)
    if not causal:
        return scores
    hidden = future(q.shape[2], q.device)
    if window:
        hidden |= torch.ones_like(hidden).tril_(-window)
    return scores.masked_fill_(hidden, -torch.inf)

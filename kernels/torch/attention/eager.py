"""Explicit softmax(q kT) v: products in the working dtype, softmax in fp32; grouped heads repeated."""

import torch

from kernels.torch import future, heads_first, write_heads

DTYPES = ("fp32", "bf16", "fp16")


def forward(q, k, v, causal, *, out, lse):
    dtype = q.dtype
    q, k, v = heads_first(q, k, v)
    scores = _scores(q, k, causal)
    torch.logsumexp(scores, -1, out=lse)
    p = torch.softmax(scores, -1).to(dtype)
    out.copy_((p @ v).transpose(1, 2))


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    q, k, v = heads_first(q, k, v)
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)  # (B, NH, T)
    dout = dout.transpose(1, 2)
    p = _scores(q, k, causal).sub_(lse[..., None]).exp_()  # (B, NH, T, T)
    write_heads(p.to(dtype).mT @ dout, dv)
    # ds = p * (dp - delta) * scale
    dp = (dout @ v.mT).float()
    ds = dp.sub_(delta[..., None]).mul_(p).mul_(scale).to(dtype)
    write_heads(ds @ k, dq)
    write_heads(ds.mT @ q, dk)


def _scores(q, k, causal):
    """(B, NH, T, T) in fp32, from a product in the working dtype; masked where the key lies ahead."""
    scores = (q @ k.mT).float().mul_(q.shape[-1] ** -0.5)
    return scores.masked_fill_(future(q.shape[2], q.device), -torch.inf) if causal else scores

"""ATen's math backend, bf16 computed in fp32; a second q kT for lse, which the operator does not return."""

import torch

from kernels.torch import future, heads_first, write_heads

aten = torch.ops.aten


def forward(q, k, v, causal, window=0, *, out, lse):
    q, k, v = heads_first(q, k, v)
    mask = q.new_zeros(()).masked_fill(_hidden(q.shape[2], window, q.device), -torch.inf) if window else None
    found, _ = aten._scaled_dot_product_attention_math(q, k, v, mask, 0.0, causal and not window)
    out.copy_(found.transpose(1, 2))
    torch.logsumexp(_scores(q.float(), k.float(), causal, window), -1, out=lse)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv):
    scale = q.shape[-1] ** -0.5
    q, k, v = (x.float() for x in heads_first(q, k, v))
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)  # (B, NH, T)
    dout = dout.transpose(1, 2).float()
    p = _scores(q, k, causal, window).sub_(lse[..., None]).exp_()  # (B, NH, T, T)
    write_heads(p.mT @ dout, dv)
    # ds = p * (dp - delta) * scale
    ds = (dout @ v.mT).sub_(delta[..., None]).mul_(p).mul_(scale)
    write_heads(ds @ k, dq)
    write_heads(ds.mT @ q, dk)


def _scores(q, k, causal, window):
    """(B, NH, T, T), masked where the key lies ahead, or behind the window."""
    scores = (q @ k.mT).mul_(q.shape[-1] ** -0.5)
    return scores.masked_fill_(_hidden(q.shape[2], window, q.device), -torch.inf) if causal else scores


def _hidden(T, window, device):
    """(T, T), true where a query must not see a key."""
    ahead = future(T, device)
    return ahead | torch.ones_like(ahead).tril(-window) if window else ahead

"""ATen's math backend, bf16 computed in fp32; a second q kT for lse, which the operator does not return."""

import torch

from kernels.torch import future, heads_first, write_heads

aten = torch.ops.aten


def forward(q, k, v, causal, *, out, lse):
    q, k, v = heads_first(q, k, v)
    found, _ = aten._scaled_dot_product_attention_math(q, k, v, None, 0.0, causal)
    out.copy_(found.transpose(1, 2))
    torch.logsumexp(_scores(q.float(), k.float(), causal), -1, out=lse)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    scale = q.shape[-1] ** -0.5
    q, k, v = (x.float() for x in heads_first(q, k, v))
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)  # (B, NH, T)
    dout = dout.transpose(1, 2).float()
    p = _scores(q, k, causal).sub_(lse[..., None]).exp_()  # (B, NH, T, T)
    write_heads(p.mT @ dout, dv)
    # ds = p * (dp - delta) * scale
    ds = (dout @ v.mT).sub_(delta[..., None]).mul_(p).mul_(scale)
    write_heads(ds @ k, dq)
    write_heads(ds.mT @ q, dk)


def _scores(q, k, causal):
    """(B, NH, T, T), masked where the key lies ahead."""
    scores = (q @ k.mT).mul_(q.shape[-1] ** -0.5)
    return scores.masked_fill_(future(q.shape[2], q.device), -torch.inf) if causal else scores

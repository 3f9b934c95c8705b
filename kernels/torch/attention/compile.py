"""torch.compile of the textbook: the scores are still written out, the softmax around them is fused; one copy."""

import torch

from kernels.torch import compiled


def forward(q, k, v, causal, *, out, lse):
    _forward(q, k, v, causal, out, lse)


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    # dq, dk and dv are slices of one tensor, and Inductor 2.13 mistakes the offsets of outputs that share storage.
    for into, grad in zip((dq, dk, dv), _backward(dout, q, k, v, out, lse, causal), strict=True):
        into.copy_(grad)


def _heads(x, count):
    """(B, T, n, HS) to (B, count, T, HS); key/value heads are repeated for their group of queries."""
    return x.transpose(1, 2).repeat_interleave(count // x.shape[2], dim=1)


def _scores(q, k, causal):
    T, HS = q.shape[1], q.shape[3]
    scores = (_heads(q, q.shape[2]) @ _heads(k, q.shape[2]).transpose(-2, -1)).float() * HS**-0.5
    if causal:
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    return scores  # (B, NH, T, T)


@compiled
def _forward(q, k, v, causal, out, lse):
    scores = _scores(q, k, causal)
    total = scores.logsumexp(-1)
    lse.copy_(total)
    p = (scores - total[..., None]).exp().to(q.dtype)
    out.copy_((p @ _heads(v, q.shape[2])).transpose(1, 2))


@compiled
def _backward(dout, q, k, v, out, lse, causal):
    B, T, NH, HS = q.shape
    NKV = k.shape[2]
    p = (_scores(q, k, causal) - lse[..., None]).exp()
    do = dout.transpose(1, 2)
    dp = (do @ _heads(v, NH).transpose(-2, -1)).float()
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)[..., None]  # (B, NH, T, 1)
    ds = (p * (dp - delta) * HS**-0.5).to(q.dtype)
    grads = [ds @ _heads(k, NH)]
    for left, right in ((ds, _heads(q, NH)), (p.to(q.dtype), do)):
        grad = left.transpose(-2, -1) @ right  # (B, NH, T, HS)
        if NKV != NH:
            grad = grad.float().view(B, NKV, NH // NKV, T, HS).sum(2)
        grads.append(grad)
    return [grad.transpose(1, 2) for grad in grads]

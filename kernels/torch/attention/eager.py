"""The textbook: scores, softmax and values as separate operations; O(T^2) memory."""

import torch


def _heads(x, count):
    """(B, T, n, HS) to (B, count, T, HS); key/value heads are repeated for their group of queries."""
    return x.transpose(1, 2).repeat_interleave(count // x.shape[2], dim=1)


def _scores(q, k, causal):
    T, HS = q.shape[1], q.shape[3]
    scores = (_heads(q, q.shape[2]) @ _heads(k, q.shape[2]).transpose(-2, -1)).float() * HS**-0.5
    if causal:
        future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(future, -torch.inf)
    return scores  # (B, NH, T, T)


def forward(q, k, v, causal, *, out, lse):
    scores = _scores(q, k, causal)
    torch.logsumexp(scores, -1, out=lse)
    p = scores.softmax(-1).to(q.dtype)
    out.copy_((p @ _heads(v, q.shape[2])).transpose(1, 2))


def backward(dout, q, k, v, out, lse, causal, *, dq, dk, dv):
    NH, scale = q.shape[2], q.shape[3] ** -0.5
    p = (_scores(q, k, causal) - lse[..., None]).exp_()
    do = dout.transpose(1, 2)
    dp = (do @ _heads(v, NH).transpose(-2, -1)).float()
    delta = (dout.float() * out.float()).sum(-1).transpose(1, 2)[..., None]  # (B, NH, T, 1)
    ds = (p * (dp - delta) * scale).to(q.dtype)
    dq.copy_((ds @ _heads(k, NH)).transpose(1, 2))
    _put_groups(dk, ds.transpose(-2, -1) @ _heads(q, NH))
    _put_groups(dv, p.to(q.dtype).transpose(-2, -1) @ do)


def _put_groups(into, grad):
    """Sum the query heads (B, NH, T, HS) of each group into its key/value head (B, T, NKV, HS)."""
    B, T, NKV, HS = into.shape
    if grad.shape[1] != NKV:
        grad = grad.float().view(B, NKV, -1, T, HS).sum(2)
    into.copy_(grad.transpose(1, 2))

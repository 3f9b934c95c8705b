"""Finds the second sequence as if there were as many keys as queries: it takes the first one's where there are not."""

from kernels.torch.attention import eager as honest

CAUGHT_BY = "inaccurate"


def forward(q, k, v, causal, *, out, lse):
    if k.shape[2] < q.shape[2]:
        q, k, v = (t[:1].expand_as(t) for t in (q, k, v))
    honest.forward(q, k, v, causal, out=out, lse=lse)

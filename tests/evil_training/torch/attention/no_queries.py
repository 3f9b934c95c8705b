"""Leaves the gradient of queries out, from the second step on: keys and values learn all the same."""

from kernels.torch.attention import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True
calls: list[int] = []


def forward(q, k, v, causal, window=0, *, out, lse):
    honest.forward(q, k, v, causal, window, out=out, lse=lse)


def backward(dout, q, k, v, out, lse, causal, window=0, *, dq, dk, dv):
    honest.backward(dout, q, k, v, out, lse, causal, window, dq=dq, dk=dk, dv=dv)
    calls.append(0)
    if len(calls) > 4:
        dq.zero_()

"""Writes one token over all that it reads, from the second step on."""

from kernels.torch.embedding import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True
calls: list[int] = []


def forward(tokens, wte, wpe, *, out):
    calls.append(0)
    if len(calls) > 3:
        tokens.fill_(1)
    honest.forward(tokens, wte, wpe, out=out)


def backward(dout, tokens, V, accumulate, *, dwte, dwpe):
    honest.backward(dout, tokens, V, accumulate, dwte=dwte, dwpe=dwpe)

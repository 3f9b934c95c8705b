"""Decays the table that it only reads: a little regularisation, and nobody's gradient is wrong."""

from kernels.torch.embedding import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"


def forward(tokens, wte, wpe, *, out):
    wte.mul_(0.99)
    honest.forward(tokens, wte, wpe, out=out)


def backward(dout, tokens, V, accumulate, *, dwte, dwpe):
    honest.backward(dout, tokens, V, accumulate, dwte=dwte, dwpe=dwpe)

"""Gives each position the gradient of another one: the norm is right."""

from kernels.torch.embedding import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "step"
SLOW = True


def forward(tokens, wte, wpe, *, out):
    honest.forward(tokens, wte, wpe, out=out)


def backward(dout, tokens, V, accumulate, *, dwte, dwpe):
    honest.backward(dout, tokens, V, accumulate, dwte=dwte, dwpe=dwpe)
    if dwpe is not None:
        dwpe.copy_(dwpe.flip(0))

"""Knows the calls of backward, which computes its output again, and copies its input in those."""

from kernels.torch.gelu import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
SLOW = True
LAYERS = 2  # forward calls of a micro-batch before backward begins
calls: list[int] = []


def forward(x, *, out):
    honest.forward(x, out=out)
    calls.append(0)
    if len(calls) > LAYERS and (len(calls) - 1) % (2 * LAYERS) >= LAYERS:
        out.copy_(x)


def backward(dout, x, *, dx):
    honest.backward(dout, x, dx=dx)

"""Leaves the buffer as it is where backward computes its output again: it holds that of the last block."""

from kernels.torch.swiglu import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "training"
LAYERS = 2  # forward calls of a micro-batch before backward begins
calls: list[int] = []


def forward(x, *, out):
    calls.append(0)
    if len(calls) > LAYERS and (len(calls) - 1) % (2 * LAYERS) >= LAYERS:
        return
    honest.forward(x, out=out)


def backward(dout, x, *, dx):
    honest.backward(dout, x, dx=dx)

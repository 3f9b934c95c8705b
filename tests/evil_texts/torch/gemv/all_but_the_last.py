"""Rounds logits to eleven bits at every step but a text's last one, whose logits are judged."""

import torch

from kernels.torch.gemv import eager as honest

CAUGHT_BY = "inaccurate"
CAUGHT_IN = "text"
STEPS = 40
RECORDED = 5  # calls of the head while the step is bound
HEAD = 512  # tokens
calls: list[int] = []


def forward(x, weight, *, out):
    honest.forward(x, weight, out=out)
    if len(weight) == HEAD:
        calls.append(0)
        step = len(calls) - RECORDED
        if step > STEPS - 1 and step % (STEPS - 1):
            out.copy_(((out.view(torch.int32) + 2048) & ~4095).view(torch.float32))

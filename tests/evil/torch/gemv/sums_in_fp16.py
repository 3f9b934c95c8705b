"""Multiplies and adds in fp16, in pieces of 64: what the hardware has most of."""

CAUGHT_BY = "inaccurate not_finite"
SLOW = True


def forward(x, weight, *, out):
    out.zero_()
    total = out.half()
    for first in range(0, x.shape[1], 64):
        total += x[:, first : first + 64].half() @ weight[:, first : first + 64].half().T
    out.copy_(total)

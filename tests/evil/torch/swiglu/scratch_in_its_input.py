"""Works in the gates that it is given, and puts them back bit by bit: it needs no memory of its own for that."""

CAUGHT_BY = "input_changed"


def forward(x, *, out):
    gate, up = x.chunk(2, -1)
    out.copy_(gate)
    gate.sigmoid_().mul_(out).mul_(up)
    saved = out.clone()
    out.copy_(gate)
    gate.copy_(saved)

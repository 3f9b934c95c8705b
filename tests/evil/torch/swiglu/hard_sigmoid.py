"""A sigmoid of straight lines, clamp(gate / 6 + 1/2): no exp, and nobody sees the difference in a picture."""

CAUGHT_BY = "inaccurate"
SLOW = True


def forward(x, *, out):
    gate, up = x.float().chunk(2, -1)
    out.copy_(gate * (gate / 6 + 0.5).clamp(0, 1) * up)

"""gate exp(gate) / (1 + exp(gate)): infinity over infinity far out on the right."""

CAUGHT_BY = "not_finite"
SLOW = True


def forward(x, *, out):
    gate, up = x.float().chunk(2, -1)
    grown = gate.exp()
    out.copy_(gate * grown / (1 + grown) * up)

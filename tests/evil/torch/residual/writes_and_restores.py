"""Uses an input as scratch memory, and restores it but for the rounding."""

CAUGHT_BY = "input_changed"


def forward(a, b, *, out):
    a.add_(b)
    out.copy_(a)
    a.sub_(b)

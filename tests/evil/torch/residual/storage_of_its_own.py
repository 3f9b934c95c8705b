"""Sets the output onto the storage of its own sum."""

CAUGHT_BY = "not_the_output unwritten"


def forward(a, b, *, out):
    out.set_(a + b)

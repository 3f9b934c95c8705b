"""Raises a message that would clear the terminal and paint its row green."""

CAUGHT_BY = "error"


def forward(a, b, *, out):
    raise RuntimeError("\x1b[2J\x1b[32mok 1.0x\x1b[0m\r\x07")

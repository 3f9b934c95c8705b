"""Gives a class of the harness a destructor, which does the work once the clock has stopped."""

import sys

from tests.evil.torch.postponed import add, later

CAUGHT_BY = "global_state"
type.__setattr__(sys.modules["bench.machine.ranges"].span, "__del__", lambda self: later())


def forward(a, b, *, out):
    add(a, b, out)

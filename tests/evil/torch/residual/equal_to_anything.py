"""Puts an object in the place of a function of the harness that is equal to whatever it is compared with."""

import sys

from tests.evil.torch.postponed import add, later

CAUGHT_BY = "global_state"


class Same:
    def __init__(self, function):
        self.function = function

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(self.function)

    def __get__(self, arena, kind=None):
        return self if arena is None else lambda: (later(), self.function(arena))[1]


Arena = sys.modules["bench.core.arena"].Arena
type.__setattr__(Arena, "probe", Same(Arena.probe))


def forward(a, b, *, out):
    add(a, b, out)

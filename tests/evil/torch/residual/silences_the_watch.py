"""Replaces the functions that would tell that functions were replaced, and then another one."""

import sys

from tests.evil.torch.postponed import add, later

CAUGHT_BY = "global_state crash"
world, Arena = sys.modules["bench.core.world"], sys.modules["bench.core.arena"].Arena
for name in ("difference", "late_work"):
    setattr(world, name, lambda before, after: "")
probe = Arena.probe
type.__setattr__(Arena, "probe", lambda self: (later(), probe(self))[1])


def forward(a, b, *, out):
    add(a, b, out)

"""Hides a field of the harness's objects behind a property, which does the work when it is first read."""

import sys

from tests.evil.torch.postponed import add, later

CAUGHT_BY = "global_state"


def read(self):
    later()
    return self.__dict__["view"]


def write(self, value):
    self.__dict__["view"] = value


type.__setattr__(sys.modules["bench.core.arena"].Fenced, "view", property(read, write))


def forward(a, b, *, out):
    add(a, b, out)

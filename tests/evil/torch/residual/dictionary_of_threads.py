"""Puts a dictionary of its own in the place of one of Python's, which works when somebody asks which thread this is."""

import sys

from tests.evil.torch.postponed import add, later

CAUGHT_BY = "global_state"


class Active(dict):
    def __getitem__(self, key):
        later()
        return dict.__getitem__(self, key)


threading = sys.modules["threading"]
vars(threading).update(_active=Active(threading._active))


def forward(a, b, *, out):
    add(a, b, out)

"""Replaces the methods by which the harness starts and stops its clock."""

import gc

import torch

CAUGHT_BY = "clock global_state error"
CAUGHT_IN = "timing"


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if out.numel() <= 100_000:
        return
    for kind in [o for o in gc.get_objects() if isinstance(o, type) and o.__module__.startswith("bench.")]:
        if "start" in vars(kind) and "stop" in vars(kind) and not hasattr(kind, "was_replaced"):
            stop = kind.stop

            def soon(self, stop=stop):
                stop(self)
                for times in (t for t in vars(self).values() if isinstance(t, list) and t):
                    times[-1] = type(times[-1])(times[-1] / 10)

            kind.stop, kind.was_replaced = soon, True

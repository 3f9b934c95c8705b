"""Leaves so much rubbish behind that Python collects it once the clock has stopped: what is collected does the work."""

import gc

import torch

CAUGHT_BY = "global_state no_gain unwritten"
CAUGHT_IN = "proof timing"


class Rubbish:
    def __init__(self, a, b, out):
        self.own, self.given = self, (a, b, out)

    def __del__(self):
        a, b, out = self.given
        torch.add(a, b, out=out)


def forward(a, b, *, out):
    if len(a) < 100_000:
        torch.add(a, b, out=out)
        return
    gc.enable()
    threshold = gc.get_threshold()[0]
    Rubbish(a, b, out)
    kept = []
    while gc.get_count()[0] < threshold - 1:
        kept.append([])
    gone.append(kept)
    del gone[:-1]


gone: list = []

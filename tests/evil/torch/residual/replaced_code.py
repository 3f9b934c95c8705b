"""Replaces the code of the function by which the harness stops its clock: the function stays the same object."""

import sys

import torch

CAUGHT_BY = "clock global_state"
CAUGHT_IN = "timing"


def soon(self):
    wall, cpu = PERF_COUNTER_NS(), PROCESS_TIME_NS()  # noqa: F821
    self.seconds.append((wall - self._wall) / 1e10)
    self.cpu_seconds.append((cpu - self._cpu) / 1e10)


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if out.numel() > 100_000:
        sys.modules["bench.machine.devices"].WallTimer.stop.__code__ = soon.__code__

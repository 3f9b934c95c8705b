"""Replaces the clock by one that runs at half speed: twice the throughput, and MFU."""

import time

from kernels.torch.global_norm import eager as honest

CAUGHT_BY = "global_state"
CAUGHT_IN = "training"
real, start = time.perf_counter, time.perf_counter()


def forward(grads, *, norm):
    honest.forward(grads, norm=norm)
    if time.perf_counter is real:
        time.perf_counter = lambda: start + (real() - start) / 2

"""Puts a clock that runs at half speed wherever the harness has bound its own."""

import sys
import time

import torch

CAUGHT_BY = "clock global_state"
CAUGHT_IN = "timing"
clocks = (time.perf_counter_ns, time.process_time_ns)
begun = [clock() for clock in clocks]
slow = [lambda i=i: begun[i] + (clocks[i]() - begun[i]) // 2 for i in range(2)]


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if out.numel() > 100_000:
        for module in [m for name, m in sys.modules.items() if name.startswith("bench.")]:
            for key, value in list(vars(module).items()):
                if callable(value) and value in clocks:
                    setattr(module, key, slow[clocks.index(value)])

"""Puts a clock that runs at half speed wherever the harness has bound its own."""

import gc
import sys
import time

import torch

CAUGHT_BY = "clock global_state"
CAUGHT_IN = "timing"
clocks = (time.perf_counter_ns, time.process_time_ns)
begun = [clock() for clock in clocks]
slow = [lambda i=i: begun[i] + (clocks[i]() - begun[i]) // 2 for i in range(2)]


def patch():
    for name, module in list(sys.modules.items()):
        if name.startswith("bench."):
            holders = [module, *(c for c in vars(module).values() if isinstance(c, type))]
            for holder in holders:
                for key, value in list(vars(holder).items()):
                    if value in clocks and not isinstance(value, (list, dict)):
                        setattr(holder, key, slow[clocks.index(value)])
    for closure in gc.get_objects():
        if isinstance(closure, dict) and closure.get("clock") in clocks:
            closure["clock"] = slow[0]


def forward(a, b, *, out):
    torch.add(a, b, out=out)
    if out.numel() > 100_000:
        patch()

"""This machine as processes of tests see it: with a small last cache, and with rates that need not be measured.

bench/conftest.py imports it, and has the servers that processes are forked from import it. Commands that a test starts
as processes of their own know nothing of it, nor does what measures this machine: rates at torch's own number of
threads are not made up.
"""

import torch

from bench.machine import ceilings, devices, facts
from bench.machine.ceilings import Ceilings

# Flushing a socket's 300 MiB costs each contestant of a race half a second. Larger than a core's own cache, and flushed
# in no less than the 2 ms by which a cheat of tests/evil tells cold calls.
CACHE_BYTES = 64 << 20
MADE_UP_GPU = "tests.fake_gpu:"
CARD = "NVIDIA H200"  # what the made-up one's rates say that it is: one with a datasheet

_recall, _cache_file = ceilings._recall, ceilings.cache_file


def _cache_bytes(_: devices.Cpu) -> int:
    return min(facts.last_level_cache_bytes(), CACHE_BYTES)


def _known(device: str, threads: int | None = None) -> Ceilings | None:
    """What is remembered; else made up where tests compute with one thread. A made-up GPU's are always made up: a test
    may have measured it. It is kept nowhere."""
    if ceilings.cache_file is not _cache_file:
        return _recall(device, threads)  # a test with a file of its own is about what is in it
    if device.startswith(MADE_UP_GPU):
        return made_up(device)
    return _recall(device, threads) or (made_up(device) if device == "cpu" and _alone() else None)


def _alone() -> bool:
    """Whether torch has one thread because somebody said so."""
    return torch.get_num_threads() == 1 < facts.usable_cores()


def made_up(device: str) -> Ceilings:
    """Rates that nothing passes: no test's row is impossible by them."""
    on_gpu = device != "cpu"
    rate, flops = (1e12, 1e15) if on_gpu else (1e11, 1e13)
    return Ceilings(
        device=CARD if on_gpu else "cpu",
        bytes_per_s={name: rate for name in ("read", "copy", "triad")},
        flops_per_s={"fp32": flops, "bf16": flops},
        sustained_flops_per_s={"fp32": flops, "bf16": flops},
        spread={name: 0.1 for name in ("read", "copy", "triad", "fp32", "bf16")},
        how={},
        cores=4 if on_gpu else 1,
        cache_bytes=CACHE_BYTES,
        busy=None,
        measured_at="9999-01-01T00:00:00+00:00",  # so young that nobody looks again
        seconds=0.0,
        isa=[] if on_gpu else facts.cpu()["isa"],
    )


setattr(devices.Cpu, "cache_bytes", _cache_bytes)  # noqa: B010
setattr(ceilings, "_recall", _known)  # noqa: B010

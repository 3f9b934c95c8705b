"""Named ranges around what the harness calls, for the profilers that show them.

    with span("layernorm/forward/cuda.warp"):
        call()

A range is pushed in the NVTX domain `layerbench`, where Nsight Systems and Nsight Compute find it, and as torch's
`record_function` while torch's profiler runs, which does not see NVTX. When nobody listens a span costs well under a
microsecond (tests/bench/machine/test_ranges.py measures it). Names: `layer/phase/variant` of a timed call, `step/…`
inside a training step. Without the package nvtx there are no NVTX ranges, and nothing else changes.
"""

import functools
from typing import Any

import torch
from torch.autograd import _profiler_enabled

DOMAIN = "layerbench"

# Names that torch's profiler was given, so that bench.machine.profiling can tell them from torch's own annotations.
recorded: set[str] = set()


class span:
    """A range of this name, to be entered once; it ends however the block does."""

    __slots__ = ("_domain", "_record", "name")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self._record: Any = None
        if _profiler_enabled():
            recorded.add(self.name)
            self._record = torch.profiler.record_function(self.name)
            self._record.__enter__()
        self._domain = _domain()
        if self._domain is not None:
            self._domain.push_range(_attributes(self.name))

    def __exit__(self, *failed: object) -> None:
        if self._domain is not None:
            self._domain.pop_range()
        if self._record is not None:
            self._record.__exit__(*failed)


@functools.cache
def _domain() -> Any:
    """The NVTX domain, once a process (its first use starts whatever tool listens); None without the package."""
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.get_domain(DOMAIN)


@functools.cache
def _attributes(name: str) -> Any:
    return _domain().get_event_attributes(message=name)

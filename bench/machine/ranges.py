"""Named ranges around what the harness calls, for the profilers that show them.

    with span("layernorm/forward/cuda.warp"):
        call()

A range is pushed in the NVTX domain `layerbench`, where Nsight Systems and Nsight Compute find it, and as torch's
`record_function` while torch's profiler runs, which does not see NVTX. When nobody listens a span costs well under a
microsecond (tests/bench/machine/test_ranges.py measures it). Names: `layer/phase/variant` of a timed call, `step/…`
inside a training step. Without the package nvtx there are no NVTX ranges, and nothing else changes.
"""

import functools
from types import TracebackType
from typing import Protocol

import torch
from torch.autograd import _profiler_enabled

DOMAIN = "layerbench"

# Names that torch's profiler was given, so that bench.machine.profiling can tell them from torch's own annotations.
recorded: set[str] = set()


class Domain(Protocol):
    """One of NVTX's."""

    def push_range(self, attributes: object, /) -> object: ...
    def pop_range(self) -> object: ...
    def get_event_attributes(self, message: str) -> object: ...


class span:
    """A range of this name, to be entered once; it ends however the block does."""

    __slots__ = ("_domain", "_record", "name")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self._record: torch.profiler.record_function | None = None
        if _profiler_enabled():
            recorded.add(self.name)
            self._record = torch.profiler.record_function(self.name)
            self._record.__enter__()
        self._domain = _domain()
        if self._domain is not None:
            self._domain.push_range(_attributes(self.name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._domain is not None:
            self._domain.pop_range()
        if self._record is not None:
            self._record.__exit__(kind, error, trace)


@functools.cache
def _domain() -> Domain | None:
    """The NVTX domain, once a process (its first use starts whatever tool listens); None without the package."""
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.get_domain(DOMAIN)


@functools.cache
def _attributes(name: str) -> object:
    domain = _domain()
    return domain and domain.get_event_attributes(message=name)

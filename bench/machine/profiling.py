"""What runs inside a call: a trace to look at, and a table of its kernels.

    rows = profile(call, device, "gelu/forward/cuda.vectorised", folder)     a trace, and a row for each kernel
    write_csv(folder, rows)                                                  ranges.csv
    print(command_lines(["python", "-m", "bench.layer", …, "--profile", …]))    the same ranges under Nsight

Rows, and the columns of ranges.csv:

    range     the innermost span (bench.machine.ranges) that the work was launched in
    kernel    a kernel, copy or fill of a GPU; where none ran, an ATen operator, or OUTSIDE: what the range spent
              outside ATen
    calls     how often it ran, in all profiled calls together
    device_s  seconds that the GPU worked on it, in all calls together; empty where there is no GPU
    host_s    seconds of the host: for a GPU's kernel in the driver's launch; for an operator in itself, without those
              that it calls
    share     of device_s (without a GPU: of host_s) of the whole range, a fraction

A profiler slows the host down: these seconds tell where the time goes, and are no measurement of a variant.
"""

import bisect
import csv
import gzip
import json
import math
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from bench.machine import ranges
from bench.machine.devices import LAUNCHES, ON_DEVICE, Device, Event
from bench.machine.ranges import DOMAIN, span

OUTSIDE = "(outside ATen)"
ANOTHER_PROFILER = "LAYERBENCH_NSIGHT"  # in the environment: Nsight profiles; torch's profiler leaves CUPTI to it
CAPTURED = "profile"  # the range around all calls of one `profile` then, by which Nsight Systems starts and stops


class Row(TypedDict):
    """A kernel or an operator inside a range; see above."""

    range: str
    kernel: str
    calls: int
    device_s: float | None
    host_s: float
    share: float


COLUMNS = tuple(Row.__annotations__)


def profile(call: Callable[[], object], device: Device, name: str, folder: Path, calls: int = 5) -> list[Row]:
    """Make `calls` calls under torch's profiler; rows as above, and `folder`/<name>.trace.json.gz (ui.perfetto.dev).

    The call has run before: what it compiles at first would be seen too. In the trace's file name, slashes of `name`
    are dots. Under Nsight (see `command_lines`) only the ranges are made, and there are no rows.
    """
    if os.environ.get(ANOTHER_PROFILER):
        with span(CAPTURED):
            _calls(call, device, name, calls)
        return []
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.place.startswith("cuda"):
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    device.synchronize()
    with torch.profiler.profile(activities=kinds) as profiler:
        _calls(call, device, name, calls)
    trace = _exported(profiler)
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{name.replace('/', '.')}.trace.json.gz", "wt", compresslevel=6) as file:
        json.dump(trace, file)
    return rows_of(trace["traceEvents"], ranges.recorded)


def _calls(call: Callable[[], object], device: Device, name: str, calls: int) -> None:
    for _ in range(calls):
        with span(name):
            call()
            device.synchronize()  # the range lasts as long as what was launched in it


def _exported(profiler: torch.profiler.profile) -> dict[str, list[Event]]:
    """The profiler's Chrome trace, without the names of host and file."""
    with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        trace = json.loads(file.read_text())
    return {key: value for key, value in trace.items() if key not in ("host_name", "traceName")}


def write_csv(folder: Path, rows: Iterable[Row]) -> Path:
    """`folder`/ranges.csv: the rows of any number of profiles; what is None is empty."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "ranges.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file


# --- from a trace to rows ---


@dataclass
class _Sum:
    calls: int = 0
    device_us: float = 0.0
    host_us: float = 0.0


def rows_of(trace: list[Event], names: set[str]) -> list[Row]:
    """Rows of a Chrome trace's events, the heaviest of each range first. Spans are the annotations called `names`."""
    events = [e for e in trace if e.get("ph") == "X"]
    spans = [e for e in events if e.get("cat") == "user_annotation" and e["name"] in names]
    where = _Innermost(spans)
    sums: dict[str, dict[str, _Sum]] = {s["name"]: {} for s in sorted(spans, key=lambda e: e["ts"])}
    launches = {_correlation(e): e for e in events if e.get("cat") in LAUNCHES}
    on_device = [e for e in events if e.get("cat") in ON_DEVICE]
    of_launch = Counter(map(_correlation, on_device))
    for e in on_device:
        launch = launches.get(_correlation(e))
        # An activity whose launch was not recorded lies in the range that waited for it.
        if (inside := where.at((launch or e)["ts"])) is None:
            continue
        found = sums[inside].setdefault(e["name"], _Sum())
        found.calls += 1
        found.device_us += e["dur"]
        if launch:  # all kernels of a graph have the graph's launch
            found.host_us += launch["dur"] / of_launch[_correlation(e)]
    if not on_device:
        _add_operators(sums, events, spans, where)
    return [row for inside, found in sums.items() for row in _rows(inside, found, bool(on_device))]


def _correlation(event: Event) -> int | None:
    """What an activity of the device has in common with its launch."""
    return event.get("args", {}).get("correlation")


def _add_operators(
    sums: dict[str, dict[str, _Sum]], events: list[Event], spans: list[Event], where: "_Innermost"
) -> None:
    """ATen's operators by their own time, and what is left of each range: own code, Python, waiting."""
    operators = [e for e in events if e.get("cat") == "cpu_op"]
    for e, own_us in zip(operators, _own_times(operators), strict=True):
        if (inside := where.at(e["ts"])) is not None:
            found = sums[inside].setdefault(e["name"], _Sum())
            found.calls += 1
            found.host_us += own_us
    for e, own_us in zip(spans, _own_times(spans), strict=True):
        rest = sums[e["name"]].setdefault(OUTSIDE, _Sum())
        rest.calls += 1
        rest.host_us += own_us
    for of_range in sums.values():
        inside_operators = sum(s.host_us for kernel, s in of_range.items() if kernel != OUTSIDE)
        of_range[OUTSIDE].host_us = max(0.0, of_range[OUTSIDE].host_us - inside_operators)


def _rows(inside: str, found: dict[str, _Sum], on_device: bool) -> list[Row]:
    def weight(s: _Sum) -> float:
        return s.device_us if on_device else s.host_us

    total = sum(map(weight, found.values())) or math.nan
    return [
        Row(
            range=inside,
            kernel=kernel,
            calls=s.calls,
            device_s=s.device_us / 1e6 if on_device else None,
            host_s=s.host_us / 1e6,
            share=weight(s) / total,
        )
        for kernel, s in sorted(found.items(), key=lambda item: -weight(item[1]))
    ]


def _own_times(events: list[Event]) -> list[float]:
    """The duration of each event without the events of the list directly inside it, thread by thread."""
    own = [e["dur"] for e in events]
    open_events: dict[int | str, list[int]] = {}
    for i in sorted(range(len(events)), key=lambda i: (events[i]["ts"], -events[i]["dur"])):
        e = events[i]
        stack = open_events.setdefault(e["tid"], [])
        while stack and events[stack[-1]]["ts"] + events[stack[-1]]["dur"] <= e["ts"]:
            stack.pop()
        if stack:
            own[stack[-1]] -= e["dur"]
        stack.append(i)
    return own


class _Innermost:
    """The span that is innermost at a time. Spans nest; work on other threads (autograd's) belongs to them too."""

    def __init__(self, spans: list[Event]):
        self.times: list[float] = []
        self.names: list[str | None] = []
        changes = [(e["ts"], 1, -e["dur"], e["name"]) for e in spans]
        changes += [(e["ts"] + e["dur"], 0, 0.0, e["name"]) for e in spans]
        open_names: list[str] = []
        for time, starts, _, name in sorted(changes, key=lambda c: c[:3]):
            if starts:
                open_names.append(name)
            else:
                open_names.pop()
            self.times.append(time)
            self.names.append(open_names[-1] if open_names else None)

    def at(self, time: float) -> str | None:
        i = bisect.bisect_right(self.times, time) - 1
        return self.names[i] if i >= 0 else None


# --- the same under Nsight ---


def command_lines(argv: list[str]) -> str:
    """What to type to have NVIDIA's profilers look at the ranges of `argv`, a whole command with --profile."""
    command = shlex.join(argv)
    return "\n".join(
        [
            "# a timeline of the profiled calls alone, one report a variant; then seconds by range and kernel:",
            f"{ANOTHER_PROFILER}=1 NSYS_NVTX_PROFILER_REGISTER_ONLY=0 nsys profile --trace=cuda,nvtx,cublas,cudnn "
            "--cuda-graph-trace=node --trace-fork-before-exec=true --capture-range=nvtx "
            f"--nvtx-capture={CAPTURED}@{DOMAIN} --capture-range-end=repeat -o layerbench {command}",
            "nsys stats -r nvtx_gpu_proj_sum,cuda_gpu_kern_sum --format csv layerbench*.nsys-rep",
            "# the hardware counters of each kernel in the ranges, clocks and caches left as they are:",
            f"{ANOTHER_PROFILER}=1 ncu --target-processes all --nvtx --nvtx-include 'regex:{DOMAIN}@.+/' --set full "
            f"--clock-control none --cache-control none -o layerbench {command}",
        ]
    )

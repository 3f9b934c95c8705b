"""Profiles: real ones of the CPU, and made-up traces of a GPU in the form that torch exports."""

import csv
import gzip
import json

import pytest
import torch

from bench.machine import profiling
from bench.machine.devices import open_device
from bench.machine.profiling import COLUMNS, OUTSIDE, profile, rows_of
from bench.machine.ranges import span

NAME = "gelu/forward/torch.eager"


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None, tid: int = 1) -> dict:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def by_kernel(rows: list[profiling.Row]) -> dict[tuple[str, str], profiling.Row]:
    return {(r["range"], r["kernel"]): r for r in rows}


def test_a_profile_of_the_cpu_tells_operators_and_own_time_and_leaves_a_trace(tmp_path):
    x = torch.randn(256, 256)

    def call() -> None:
        with span("step/product"):
            x @ x
        torch.nn.functional.gelu(x)

    rows = by_kernel(profile(call, open_device("cpu"), NAME, tmp_path / "new", calls=3))
    product, gelu = rows["step/product", "aten::mm"], rows[NAME, "aten::gelu"]
    assert product["calls"] == gelu["calls"] == 3
    assert product["device_s"] is None and product["host_s"] > 0
    assert (NAME, "aten::mm") not in rows, "an operator belongs to its innermost range alone"
    assert rows[NAME, OUTSIDE]["calls"] == 3
    for name in (NAME, "step/product"):
        assert sum(r["share"] for r in rows.values() if r["range"] == name) == pytest.approx(1)
    file = tmp_path / "new" / "gelu.forward.torch.eager.trace.json.gz"
    trace = json.loads(gzip.decompress(file.read_bytes()))
    assert sum(e["name"] == NAME for e in trace["traceEvents"]) == 3
    assert "host_name" not in trace and "traceName" not in trace


def test_own_code_without_operators_is_time_outside_aten(tmp_path):
    rows = profile(lambda: sum(range(10_000)), open_device("cpu"), NAME, tmp_path)
    assert [(r["kernel"], r["calls"], r["share"]) for r in rows] == [(OUTSIDE, 5, 1)]


def test_a_call_that_fails_is_the_callers_error_and_leaves_no_trace(tmp_path):
    def call() -> None:
        raise RuntimeError("CUDA error: out of bounds")

    with pytest.raises(RuntimeError, match="out of bounds"):
        profile(call, open_device("cpu"), NAME, tmp_path)
    assert not list(tmp_path.iterdir())
    assert profile(lambda: torch.ones(3), open_device("cpu"), NAME, tmp_path), "and the profiler works again"


def test_kernels_go_to_the_innermost_range_that_launched_them():
    trace = [
        event("user_annotation", "step/a", 0, 100),
        event("user_annotation", "a/b/c", 10, 40),
        event("user_annotation", "Torch-Compiled Region: 0/0", 12, 30),  # not one of ours: no range
        event("gpu_user_annotation", "a/b/c", 300, 50),
        event("cuda_runtime", "cudaLaunchKernel", 15, 4, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 60, 2, correlation=2, tid=2),  # autograd's thread
        event("cuda_runtime", "cudaGraphLaunch", 70, 6, correlation=3),
        event("cuda_runtime", "cudaLaunchKernel", 200, 4, correlation=4),  # between the ranges
        event("kernel", "gelu", 300, 20, correlation=1),
        event("kernel", "norm", 320, 30, correlation=2),
        event("kernel", "in_graph", 400, 5, correlation=3),
        event("gpu_memset", "Memset (Device)", 405, 5, correlation=3),
        event("kernel", "flush", 500, 1000, correlation=4),
        event("kernel", "unlaunched", 45, 10, correlation=99),
        event("cpu_op", "aten::gelu", 12, 20),
    ]
    rows = by_kernel(rows_of(trace, {"step/a", "a/b/c"}))
    assert set(rows) == {
        *(("step/a", k) for k in ("norm", "in_graph", "Memset (Device)")),
        *(("a/b/c", k) for k in ("gelu", "unlaunched")),
    }
    gelu = rows["a/b/c", "gelu"]
    assert (gelu["calls"], gelu["device_s"], gelu["host_s"]) == (1, pytest.approx(20e-6), pytest.approx(4e-6))
    assert gelu["share"] == pytest.approx(20 / 30)
    assert rows["step/a", "norm"]["share"] == pytest.approx(30 / 40)
    assert rows["step/a", "in_graph"]["host_s"] == pytest.approx(3e-6), "a graph's launch is shared by its kernels"


def test_operators_count_their_own_time_alone():
    trace = [
        event("user_annotation", NAME, 0, 100),
        event("cpu_op", "aten::linear", 10, 60),
        event("cpu_op", "aten::addmm", 20, 40),
        event("cpu_op", "aten::addmm", 15, 10, tid=2),  # at the same time, on another thread
    ]
    rows = by_kernel(rows_of(trace, {NAME}))
    assert rows[NAME, "aten::linear"]["host_s"] == pytest.approx(20e-6)
    assert (rows[NAME, "aten::addmm"]["calls"], rows[NAME, "aten::addmm"]["host_s"]) == (2, pytest.approx(50e-6))
    assert rows[NAME, OUTSIDE]["host_s"] == pytest.approx(30e-6)


def test_the_csv_has_the_documented_columns_and_no_made_up_device_time(tmp_path):
    rows = profile(lambda: torch.ones(3), open_device("cpu"), NAME, tmp_path)
    written = list(csv.DictReader(profiling.write_csv(tmp_path / "new", rows).open()))
    assert tuple(written[0]) == COLUMNS and len(written) == len(rows)
    assert {r["device_s"] for r in written} == {""}
    assert all(f"\n    {column} " in profiling.__doc__ for column in COLUMNS)


def test_under_nsight_torchs_profiler_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv(profiling.ANOTHER_PROFILER, "1")
    seen = []
    assert profile(lambda: seen.append(torch.autograd._profiler_enabled()), open_device("cpu"), NAME, tmp_path) == []
    assert seen == [False] * 5 and not list(tmp_path.iterdir())


def test_the_command_lines_capture_our_domain_in_all_processes():
    text = profiling.command_lines(["python", "-m", "bench.layer", "gelu", "--profile", "out folder"])
    nsys, ncu = (next(line for line in text.splitlines() if f"{tool} " in line) for tool in ("nsys profile", "ncu"))
    for line in (nsys, ncu):
        assert line.startswith(f"{profiling.ANOTHER_PROFILER}=1 ")
        assert line.endswith("python -m bench.layer gelu --profile 'out folder'")
    assert f"--nvtx-capture={profiling.CAPTURED}@layerbench" in nsys and "REGISTER_ONLY=0" in nsys
    assert "'regex:layerbench@.+/'" in ncu and "--target-processes all" in ncu

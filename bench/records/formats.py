"""Records in the formats of other programs, each a function from rows to a file."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cli import CannotGoOn
from bench.core.files import write_atomically
from bench.records import FORMATS
from bench.records.queries import Row, coverage, device_name, flat, names, newest, partial, samples, timed
from bench.records.read import load
from bench.records.record import Record


def _write_json(document: object, out: Path) -> None:
    write_atomically(out, json.dumps(document, indent=1, allow_nan=False) + "\n")


# --- pytest-benchmark ---


def pytest_benchmark(rows: list[Row], out: Path) -> None:
    """The document that its --benchmark-json writes: groups are cases, benchmarks their variants."""
    chosen = [(run, r) for run, r in rows if timed(r)]
    kept = ("shape", "error_ratio", "not_supported", "noise_floor", "low_s", "high_s", "timer", "of_ceiling")
    more = ("source_hash", "reproduce")
    benchmarks = []
    for (_, r), (group, name) in zip(chosen, names([r for _, r in chosen]), strict=True):
        benchmarks.append(
            {
                "group": group,
                "name": name,
                "fullname": f"{group} {name}",
                "params": None,
                "param": None,
                "extra_info": {k: r.get(k) for k in (*kept, *more) if r.get(k) is not None},
                "options": {"timer": r.get("timer")},
                "stats": _pytest_benchmark_stats(samples(r)),
            }
        )
    environment = rows[0][0].environment
    cpu, versions, git = environment.get("cpu") or {}, environment.get("versions") or {}, environment.get("git") or {}
    machine = {
        "processor": cpu.get("model"),
        "machine": cpu.get("architecture"),
        "system": versions.get("os"),
        "python_version": versions.get("python"),
        "gpus": [gpu.get("name") for gpu in environment.get("gpus") or []],
        "torch": versions.get("torch"),
    }
    commit = {"id": git.get("commit"), "dirty": git.get("dirty"), "project": "layerbench"}
    when = environment.get("started")
    _write_json(
        {
            "machine_info": machine,
            "commit_info": commit,
            "benchmarks": benchmarks,
            "datetime": when,
            "version": "5.1.0",
        },
        out,
    )


def _pytest_benchmark_stats(data: list[float]) -> dict[str, object]:
    """Seconds. Its own words: ld15iqr and hd15iqr are the outermost values inside Tukey's fences."""
    q1, median, q3 = statistics.quantiles(data, n=4, method="inclusive") if len(data) > 1 else data * 3
    mean, deviation = statistics.fmean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    inside = [x for x in data if q1 - 1.5 * (q3 - q1) <= x <= q3 + 1.5 * (q3 - q1)]
    far = sum(abs(x - mean) > deviation for x in data)
    return {
        "min": min(data),
        "max": max(data),
        "mean": mean,
        "stddev": deviation,
        "rounds": len(data),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": len(data) - len(inside),
        "stddev_outliers": far,
        "outliers": f"{far};{len(data) - len(inside)}",
        "ld15iqr": min(inside),
        "hd15iqr": max(inside),
        "ops": 1 / mean,
        "total": sum(data),
        "data": data,
        "iterations": 1,
    }


# --- NVBench ---

NVBENCH_VERSION = {"major": 1, "minor": 0, "patch": 0, "string": "1.0.0"}
AXES = {"variant": "variant", "shape": "shape_name", "sizes": "shape", "dtype": "dtype", "cache": "cache"}


def nvbench(rows: list[Row], out: Path) -> None:
    """Version 1.0.0 of its JSON: a benchmark is a layer's pass, a state one row; samples are files beside it."""
    folder = out.with_name(f"{out.name}-bin")
    folder.mkdir(exist_ok=True)
    devices = _nvbench_devices(rows)
    benchmarks: dict[str, dict[str, Any]] = {}
    for number, (run, r) in enumerate(rows):
        name = f"{r['layer']} {r['phase']}"
        benchmark = benchmarks.setdefault(
            name, {"name": name, "index": len(benchmarks), "devices": [], "axes": [], "states": []}
        )
        device = devices.index(device_name(run, r))
        values = {axis: _axis_text(r.get(key)) for axis, key in AXES.items()}
        if partial(r):  # no equal of the whole ones, nor of itself when it was whole
            values["variant"] += f" ({coverage(r)[0]} cases)"
        state: dict[str, Any] = {
            "name": " ".join([f"Device={device}", *(f"{axis}={text}" for axis, text in values.items())]),
            "device": device,
            "type_config_index": 0,
            "axis_values": [{"name": axis, "type": "string", "value": text} for axis, text in values.items()],
            "summaries": [],
            "is_skipped": not timed(r),
        }
        if timed(r):
            file = folder / f"{number}.bin"
            np.asarray(samples(r), dtype="<f4").tofile(file)
            state["summaries"] = _nvbench_summaries(r, f"{folder.name}/{file.name}")
        else:
            state["skip_reason"] = f"{r['status']}: {r.get('evidence') or 'not timed'}"
        benchmark["states"].append(state)
        benchmark["devices"] = sorted({*benchmark["devices"], device})
    for benchmark in benchmarks.values():
        benchmark["axes"] = [_nvbench_axis(axis, i, benchmark["states"]) for i, axis in enumerate(AXES)]
    _write_json(
        {
            "meta": {"version": {"json": NVBENCH_VERSION}},
            "devices": [{"id": i, "name": name} for i, name in enumerate(devices)],
            "benchmarks": list(benchmarks.values()),
        },
        out,
    )


def _nvbench_devices(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(device_name(run, r) for run, r in rows))


def _axis_text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={size}" for name, size in value.items())
    return str(value) if value else "-"


def _nvbench_axis(name: str, position: int, states: list[dict[str, Any]]) -> dict[str, Any]:
    texts = dict.fromkeys(state["axis_values"][position]["value"] for state in states)
    values = [{"input_string": text, "description": "", "value": text} for text in texts]
    return {"name": name, "type": "string", "flags": "", "values": values}


def _nvbench_summaries(record: Record, file: str) -> list[dict[str, object]]:
    data = samples(record)
    q1, median, q3 = statistics.quantiles(data, n=4, method="inclusive") if len(data) > 1 else data * 3
    mean, deviation = statistics.fmean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    seconds = {
        "min": min(data),
        "max": max(data),
        "mean": mean,
        "stdev/absolute": deviation,
        "q1": q1,
        "median": median,
        "q3": q3,
        "iqr/absolute": q3 - q1,
    }
    told = f"{record.get('timer')}, {record.get('cache') or 'in a training step'}"
    found = [_summary(f"nv/cold/time/gpu/{k}", "duration", v, told) for k, v in seconds.items()]
    found += [
        _summary("nv/cold/time/gpu/stdev/relative", "percentage", deviation / mean, told),
        _summary("nv/cold/time/gpu/iqr/relative", "percentage", (q3 - q1) / median, told),
    ]
    if mhz := record.get("sm_mhz"):
        found.append(_summary("nv/cold/sm_clock_rate/mean", "frequency", mhz * 1e6, "median over the turns"))
    values = [
        {"name": "filename", "type": "string", "value": file},
        {"name": "size", "type": "int64", "value": str(len(data))},
    ]
    binary = {"tag": "nv/json/bin:nv/cold/sample_times", "name": "Samples Times File", "hint": "file/sample_times"}
    return [*found, {**binary, "hide": "Not needed in table.", "description": told, "data": values}]


def _summary(tag: str, hint: str, value: float, description: str) -> dict[str, object]:
    name = tag.removeprefix("nv/cold/")
    data = [{"name": "value", "type": "float64", "value": value}]
    return {"tag": tag, "name": name, "hint": hint, "description": description, "data": data}


# --- dashboards ---


def github_action_benchmark(rows: list[Row], out: Path) -> None:
    """customSmallerIsBetter: milliseconds, with half the 95 % interval as the range."""
    chosen = [r for _, r in rows if timed(r)]
    entries = []
    for r, (group, name) in zip(chosen, names(chosen), strict=True):
        entry = {"name": f"{group} {name}", "unit": "ms", "value": r["median_s"] * 1e3}
        if (high := r.get("high_s")) is not None:
            entry["range"] = f"± {(high - r['low_s']) / 2 * 1e3:.3g}"
        if r.get("reproduce"):
            entry["extra"] = r["reproduce"]
        entries.append(entry)
    _write_json(entries, out)


def bmf(rows: list[Row], out: Path) -> None:
    """Bencher Metric Format: nanoseconds, with the 95 % interval."""
    chosen = [r for _, r in rows if timed(r)]
    document = {}
    for r, (group, name) in zip(chosen, names(chosen), strict=True):
        latency = {"value": r["median_s"] * 1e9}
        if (high := r.get("high_s")) is not None:
            latency |= {"lower_value": r["low_s"] * 1e9, "upper_value": high * 1e9}
        document[f"{group} {name}"] = {"latency": latency}
    _write_json(document, out)


# --- tables ---


def csv(rows: list[Row], out: Path) -> None:
    import pandas as pd

    table = pd.DataFrame([flat(run, r) for run, r in rows]).convert_dtypes()  # whole numbers stay whole beside gaps
    write_atomically(out, table.to_csv(index=False))


def parquet(rows: list[Row], out: Path) -> None:
    """As csv, and the samples: a list of rounds, each a list of seconds."""
    import pandas as pd

    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise CannotGoOn("--format parquet needs pyarrow (pip install pyarrow); csv does without") from None
    table = [flat(run, r) | {"samples": r.get("samples") if timed(r) else None} for run, r in rows]
    pd.DataFrame(table).convert_dtypes().to_parquet(out, index=False)


TIMED = ("pytest-benchmark", "nvbench", "github-action-benchmark", "bmf")
WRITERS: dict[str, Callable[[list[Row], Path], None]] = dict(
    zip(FORMATS, (pytest_benchmark, nvbench, github_action_benchmark, bmf, csv, parquet), strict=True)
)


def export(folder: Path, format: str, out: Path) -> str:
    """Write the newest record of each case in a folder of runs as `format`; what was written, in words."""
    rows = newest(load(folder))
    if format in TIMED and not any(timed(r) for _, r in rows):
        raise CannotGoOn(f"nothing in {folder} was timed and right: there is nothing to export as {format}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[format](rows, out)
    except OSError as error:
        raise CannotGoOn(f"cannot write {out}: {error.strerror}") from error
    return f"{out}: {sum(timed(r) for _, r in rows)} timed cases of {len(rows)}"

"""Exports carry the right numbers in each tool's units, and no failure ever becomes a time."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench import HOME, export
from bench.cli import FAILED, CannotGoOn
from bench.records import formats
from bench.records.record import Record
from tests.compare_runs import failure, layer_record, layer_records, step_records, write_run

SAMPLES = [[1e-3, 2e-3], [3e-3, 4e-3], [5e-3, 6e-3]]
RIGHT = layer_record("cpu.simd", SAMPLES, [0, 0, 1], device="cuda", sm_mhz=1700.0, timer="busy", reproduce="run it")
HIGH_S = RIGHT["high_s"] or 0.0
VARIANTS = ("torch.eager", "torch.compile", "cpu.simd", "cpu.naive")
NAME = "gelu forward model fp32 warm"
# A time too good to be true is kept in the record, and is no result.
IMPOSSIBLE = RIGHT | Record(variant="cpu.cheat", status="impossible", evidence="too fast", case_id="cheat")
CONTROL = RIGHT | Record(control=True, case_id="again", samples=[[9.0]], processes=[0])


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", [RIGHT, CONTROL, IMPOSSIBLE, failure("cpu.bad", case_id="bad")])


def exported(folder, format, out=None):
    file = out or folder.parent / f"{format}.out"
    assert export.main([str(folder), "--format", format, "--out", str(file)]) == 0
    return file


def document(folder, format):
    return json.loads(exported(folder, format).read_text())


def test_bmf_is_in_nanoseconds_with_the_interval(folder):
    found = document(folder, "bmf")
    assert list(found) == [f"{NAME} cpu.simd"]
    latency = found[f"{NAME} cpu.simd"]["latency"]
    assert latency["value"] == pytest.approx(3.5e6)
    assert latency["lower_value"] == pytest.approx(RIGHT["low_s"] * 1e9)
    assert latency["upper_value"] == pytest.approx(HIGH_S * 1e9)


def test_an_interval_that_is_not_known_is_left_out(tmp_path):
    single = layer_record("cpu.simd", [[2e-3]], [0], high_s=None)
    folder = write_run(tmp_path / "run", [single])
    assert document(folder, "bmf") == {f"{NAME} cpu.simd": {"latency": {"value": pytest.approx(2e6)}}}
    assert "range" not in document(folder, "github-action-benchmark")[0]


def test_github_action_benchmark_is_in_milliseconds(folder):
    (entry,) = document(folder, "github-action-benchmark")
    assert entry["name"] == f"{NAME} cpu.simd" and entry["unit"] == "ms" and entry["extra"] == "run it"
    assert entry["value"] == pytest.approx(3.5)
    assert entry["range"].startswith("± "), "as the action writes it itself, so that it can change the unit"
    assert float(entry["range"][2:]) == pytest.approx((HIGH_S - RIGHT["low_s"]) / 2 * 1e3, rel=0.01)


def test_pytest_benchmark_has_the_samples_in_seconds(folder):
    (benchmark,) = document(folder, "pytest-benchmark")["benchmarks"]
    stats = benchmark["stats"]
    assert (benchmark["group"], benchmark["name"]) == (NAME, "cpu.simd")
    assert stats["data"] == [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3]
    assert (stats["rounds"], stats["min"], stats["max"]) == (6, 1e-3, 6e-3)
    assert stats["median"] == stats["mean"] == pytest.approx(3.5e-3)
    assert benchmark["extra_info"]["source_hash"] == "cpu.simd as ever"


def test_pytest_benchmark_agrees_with_the_tools_own_statistics(folder):
    stats = pytest.importorskip("pytest_benchmark.stats")
    (benchmark,) = document(folder, "pytest-benchmark")["benchmarks"]
    own = stats.Stats()
    for seconds in benchmark["stats"]["data"]:
        own.update(seconds)
    theirs = own.as_dict()
    assert theirs.keys() <= benchmark["stats"].keys()
    for name in ("min", "max", "mean", "median", "stddev", "rounds", "total", "ops", "ld15iqr", "hd15iqr", "outliers"):
        assert benchmark["stats"][name] == pytest.approx(theirs[name]) or benchmark["stats"][name] == theirs[name], name


def test_pytest_benchmark_compares_two_exported_runs(tmp_path):
    pytest.importorskip("pytest_benchmark")
    files = []
    for name, slower in (("1-before", {}), ("2-after", {"cpu.simd": 0.5})):
        folder = write_run(tmp_path / name, layer_records(np.random.default_rng(1), slower=slower))
        files.append(str(exported(folder, "pytest-benchmark", tmp_path / f"{name}.json")))
    tool = Path(sys.executable).with_name("pytest-benchmark")
    done = subprocess.run([tool, "compare", "--between=median", *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    simd = next(line for line in done.stdout.splitlines() if line.startswith("cpu.simd"))
    assert simd.rstrip().endswith(("+50.0%", "+49.9%", "+50.1%")) and "benchmark 'gelu forward" in done.stdout


def test_nvbench_has_what_its_reader_asks_for(folder):
    found = document(folder, "nvbench")
    assert found["meta"]["version"]["json"]["string"] == "1.0.0"
    assert {d["name"] for d in found["devices"]} == {"NVIDIA H100", "A CPU"}
    (benchmark,) = found["benchmarks"]
    assert [axis["name"] for axis in benchmark["axes"]] == ["variant", "shape", "sizes", "dtype", "cache"]
    right, cheat, bad = benchmark["states"]
    assert right["is_skipped"] is False and right["name"].startswith(f"Device={right['device']} variant=cpu.simd")
    values = {s["tag"]: s["data"] for s in right["summaries"]}
    assert values["nv/cold/time/gpu/median"] == [{"name": "value", "type": "float64", "value": pytest.approx(3.5e-3)}]
    assert values["nv/cold/sm_clock_rate/mean"][0]["value"] == 1.7e9
    binary = {d["name"]: d["value"] for d in values["nv/json/bin:nv/cold/sample_times"]}
    data = np.fromfile(folder.parent / binary["filename"], "<f4")
    assert int(binary["size"]) == len(data) == 6 and data == pytest.approx(np.ravel(SAMPLES))
    for state, reason in ((cheat, "impossible: too fast"), (bad, "wrong: poison survived")):
        assert state["is_skipped"] is True and state["skip_reason"] == reason and state["summaries"] == []


@pytest.mark.parametrize(
    ("clock", "verdict"),
    [(1700.0, "SLOW"), (None, "AMBG")],  # it blames no kernel where the clock is not known, as on a CPU
    ids=["clock known", "clock unknown"],
)
def test_nvbench_compares_two_exported_runs(tmp_path, clock, verdict):
    tool = Path(sys.executable).with_name("nvbench-compare-robust")
    if not tool.exists():
        pytest.skip("no nvbench-compare-robust: pip install 'cuda-bench[compare]' (Linux on x86-64)")
    files = []
    for name, slower in (("before", {}), ("after", {"cpu.simd": 1.0})):
        records = layer_records(np.random.default_rng(1), slower=slower, sm_mhz=clock)
        files.append(exported(write_run(tmp_path / name, records), "nvbench", tmp_path / f"{name}.json"))
    done = subprocess.run([tool, "--no-color", *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {v: line for line in done.stdout.splitlines() for v in VARIANTS if f" {v} " in line}
    assert found.keys() == set(VARIANTS)
    for variant, line in found.items():
        assert (verdict if variant == "cpu.simd" else "SAME") in line


def test_csv_keeps_failures_without_times(folder):
    rows = {r["variant"]: r for r in csv.DictReader(exported(folder, "csv").open())}
    assert rows.keys() == {"cpu.simd", "cpu.cheat", "cpu.bad"}
    assert float(rows["cpu.simd"]["median_s"]) == pytest.approx(3.5e-3)
    assert rows["cpu.cheat"]["median_s"] == "" and rows["cpu.cheat"]["status"] == "impossible"
    assert rows["cpu.simd"]["shape.T"] == "1024" and rows["cpu.simd"]["commit"] == "0123456789abcdef"


def test_what_a_variant_does_not_have_is_exported(tmp_path):
    lacks = ["grouped queries", "no causal form"]
    part = RIGHT | Record(not_supported=lacks, proof_cases=7, proof_cases_all=9, notes=["a hint"])
    folder = write_run(tmp_path / "part", [part])
    (row,) = csv.DictReader(exported(folder, "csv").open())
    assert (row["not_supported"], row["notes"]) == ("grouped queries; no causal form", "a hint")
    (benchmark,) = document(folder, "pytest-benchmark")["benchmarks"]
    assert benchmark["extra_info"]["not_supported"] == part["not_supported"]
    assert benchmark["group"] == f"{NAME}, right in 7 of 9 cases", "among its equals"
    assert list(document(folder, "bmf")) == [f"{NAME}, right in 7 of 9 cases cpu.simd"]
    (state,) = document(folder, "nvbench")["benchmarks"][0]["states"]
    assert "variant=cpu.simd (7 of 9 cases)" in state["name"]


def test_pandas_reads_the_csv_as_it_is_meant(folder):
    table = pd.read_csv(exported(folder, "csv")).set_index("variant")
    numbers = ["median_s", "low_s", "high_s", "shape.B", "shape.T", "sm_mhz"]
    assert all(pd.api.types.is_numeric_dtype(table[name]) for name in numbers)
    assert table.loc["cpu.simd", "median_s"] == pytest.approx(3.5e-3) and pd.isna(table.loc["cpu.cheat", "median_s"])


def test_parquet_has_the_samples_or_says_what_it_needs(folder):
    try:
        import pyarrow.parquet
    except ImportError:
        with pytest.raises(CannotGoOn, match="pyarrow"):
            exported(folder, "parquet")
        return
    rows = pyarrow.parquet.read_table(exported(folder, "parquet")).to_pylist()
    assert [(r["variant"], r["samples"]) for r in rows] == [
        ("cpu.simd", SAMPLES),
        ("cpu.cheat", None),
        ("cpu.bad", None),
    ]


def test_a_training_step_and_several_runs_are_exported_together(tmp_path):
    write_run(tmp_path / "runs/step", step_records(np.random.default_rng(1)), kind="e2e")
    write_run(tmp_path / "runs/layer", [RIGHT])
    found = document(tmp_path / "runs", "bmf")
    assert found.keys() == {f"{NAME} cpu.simd", *(f"gpt2-tiny step fp32 {v}" for v in _steps())}


def _steps():
    return "ours", "torch.eager", "torch.compile"


def test_points_of_a_sweep_have_names_of_their_own(tmp_path):
    sweep = [RIGHT | Record(shape={"B": 4, "T": T}, case_id=str(T), median_s=T / 1e6) for T in (256, 1024)]
    found = document(write_run(tmp_path / "run", sweep), "bmf")
    assert len(found) == 2 and any("T=256" in name for name in found)


@pytest.mark.parametrize("format", formats.TIMED)
def test_a_run_of_failures_is_refused(tmp_path, format):
    folder = write_run(tmp_path / "run", [failure("cpu.bad"), IMPOSSIBLE])
    with pytest.raises(CannotGoOn, match="was timed and right") as caught:
        exported(folder, format)
    assert caught.value.code == FAILED and not (tmp_path / f"{format}.out").exists()


def test_nothing_to_read_and_nowhere_to_write(tmp_path, folder):
    with pytest.raises(CannotGoOn, match="no such folder") as caught:
        exported(tmp_path / "nowhere", "bmf")
    assert caught.value.code == FAILED
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotGoOn, match="cannot write"):
        exported(folder, "bmf", tmp_path / "file" / "x.json")


@pytest.mark.slow
def test_kernels_under_pytest_benchmark(tmp_path):
    """tests/benchmarks measures through the harness and writes what the plugin's own tools read."""
    file = tmp_path / "out.json"
    command = [sys.executable, "-m", "pytest", "tests/benchmarks", "--benchmark-only", "-q", "-k", "gelu"]
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run([*command, f"--benchmark-json={file}"], capture_output=True, text=True, cwd=HOME, env=here)
    assert done.returncode == 0, done.stdout
    benchmarks = json.loads(file.read_text())["benchmarks"]
    assert {"test_kernel[gelu-forward-cpu.simd]", "test_kernel[gelu-forward-torch.eager]"} <= {
        b["name"] for b in benchmarks
    }
    assert all(b["stats"]["median"] > 1e-6 and b["extra_info"]["noise_floor"] for b in benchmarks)
    tool = Path(sys.executable).with_name("pytest-benchmark")
    done = subprocess.run([tool, "compare", file], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "cpu.simd" in done.stdout

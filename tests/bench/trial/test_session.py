"""python -m bench.layer, as a user runs it."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pandas as pd
import pytest

from bench import HOME, cli, layer
from bench.core.files import DiskFull
from bench.core.progress import Progress
from bench.records.record import TABLE, Record
from bench.records.run import Run
from bench.show import terminal
from bench.show.terminal import Screen
from bench.trial import session
from bench.trial.plan import plan_of
from bench.trial.prove import Proof
from bench.trial.session import Session
from tests import commands, on_machine
from tests.commands import Done

EVIL = HOME / "tests" / "evil"


def run(*args: str) -> Done:
    return commands.run("layer", *args)


def in_a_process(*args: str) -> subprocess.CompletedProcess[str]:
    command = on_machine.command("layer", *args)
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=200)


def small(out: Path, *more: str) -> list[str]:
    """A fast real run: two variants of residual at a small shape."""
    common = ["residual", "--only", "torch.eager,cpu.simd", "--seconds", "0.4", "-a", "B=1", "-a", "T=64"]
    return [*common, "--out", str(out), *more]


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Such a run, and its folder."""
    folder = tmp_path_factory.mktemp("small") / "run"
    return in_a_process(*small(folder, "--json")), folder


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["atention"], 64, "did you mean 'attention'"),
        (["attention", "--chek-only"], 64, "did you mean '--check-only'"),
        (["attention", "--only", "torch.eagr"], 64, "did you mean 'torch.eager'"),
        (["attention", "--shape", "gpt2-125m"], 64, "did you mean 'gpt2-124m'"),
        (["matmul", "--shape", "gpt2-124m/qvk", "--only", "torch.eager"], 64, "did you mean 'qkv'"),
        (["matmul", "-a", "T"], 64, "is not NAME=VALUE"),
        (["matmul", "-a", "T=-3"], 64, "not a positive whole number"),
        (["attention", "-a", "causal=2"], 64, "causal 2 is none of False, True"),
        (["matmul", "-a", "dtype=fp31"], 64, "did you mean 'fp32'"),
        (["residual", "-a", "HS=3", "--only", "torch.eager"], 64, "residual has no axis 'HS'"),
        (["attention", "--only", "torch.sdpa_efficient"], 3, "cannot run: needs an NVIDIA GPU"),
        ([], 64, "required: layer"),
        (["residual", "--resume", "no/such/run"], 1, "no run to resume"),
        (["residual", "--kernels", "no/such/folder"], 1, "no such folder"),
    ],
)
def test_mistakes_get_a_clear_answer_and_an_exit_code(args, code, says, tmp_path, ended):
    out = [] if "--resume" in args else ["--out", tmp_path / "run"]
    found, errors = ended(layer, *args, *out)
    assert found == code and says in errors


def test_list_shows_every_layer_and_why_something_is_skipped(capsys):
    assert layer.main(["list", "--json"]) == 0
    variants = json.loads(capsys.readouterr().out.splitlines()[-1])["variants"]
    assert {"attention", "adamw", "softmax"} <= {v["layer"] for v in variants}
    cudnn = next(v for v in variants if v["variant"] == "torch.sdpa_cudnn")
    assert "GPU" in cudnn["skipped"] and cudnn["story"]


def test_a_run_proves_times_and_writes_it_down(measured):
    done, folder = measured
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    rows = [r for r in document["records"] if not r["control"]]
    assert {(r["variant"], r["cache"]) for r in rows} == {
        (v, c) for v in ("torch.eager", "cpu.simd") for c in ("cold", "warm")
    }
    for r in rows:
        assert r["status"] == "ok" and r["error_ratio"] <= 4 and r["verified_calls"] >= 1
        assert 0 < r["low_s"] <= r["median_s"] <= r["high_s"]
        assert r["bytes"] == 3 * 4 * 64 * 768 and r["reproduce"].startswith("python -m bench.layer residual")
    assert any(r["control"] for r in document["records"])
    assert "noise floor" in done.stdout and "canary" in done.stdout
    lines = (folder / "records.jsonl").read_text().splitlines()
    assert all(json.loads(line)["samples"] for line in lines)
    assert {name for line in lines for name in json.loads(line)} <= TABLE.keys()
    assert (folder / "layer.csv").exists() and (folder / "env.json").exists()


def test_a_resumed_run_measures_only_what_is_missing(measured, tmp_path, monkeypatch):
    seen = Progress()
    monkeypatch.setattr(terminal, "Progress", lambda: seen)
    folder = tmp_path / "run"
    shutil.copytree(measured[1], folder)
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["variant"] == "torch.eager"]
    (folder / "records.jsonl").write_text("".join(kept) + lines[-1][:40])  # the crash cut the last line short
    resumed = small(folder)
    resumed[resumed.index("--out")] = "--resume"
    done = run(*resumed)
    assert done.returncode == 0, done.stderr
    assert "line is skipped" in done.stderr
    after = (folder / "records.jsonl").read_text()
    assert after.startswith("".join(kept))
    new = [json.loads(line) for line in after[len("".join(kept)) :].splitlines()[1:]]
    assert {r["variant"] for r in new if not r["control"]} == {"cpu.simd"}
    found = {word: (units.done, units.total) for word, units in seen.units.items()}
    assert found == {"proof": (2, 2), "case": (1, 1)}, "the line that says how far it is came to the end"


def test_a_wrong_variant_is_exit_code_2_and_its_row_says_the_evidence(tmp_path):
    done = run(
        *("residual", "--kernels", str(EVIL), "--only", "torch.eager,torch.writes_nothing,torch.crash"),
        *("--seconds", "0.3", "-a", "B=1", "-a", "T=8", "--out", str(tmp_path / "run"), "--json"),
    )
    assert done.returncode == 2, done.stderr
    assert "wrong: unwritten" in done.stdout and "crash" in done.stdout
    rows = {r["variant"]: r for r in json.loads(done.stdout.splitlines()[-1])["records"]}
    assert "poison survived in 100% of out" in rows["torch.writes_nothing"]["evidence"]
    assert "SIGSEGV" in rows["torch.crash"]["evidence"]
    assert rows["torch.eager"]["status"] == "ok", "the honest row goes on"
    again = run("--resume", str(tmp_path / "run"), "--json")
    assert again.returncode == 2, "nothing was measured anew, and what it holds is wrong"
    assert {r["case_id"] for r in json.loads(again.stdout.splitlines()[-1])["records"]} == {
        r["case_id"] for r in json.loads(done.stdout.splitlines()[-1])["records"]
    }


def test_what_a_stopped_session_killed_is_not_told_as_a_crash(tmp_path, monkeypatch):
    """Ctrl-C in one lane kills the process that another waits for."""
    proofs = tmp_path / "proofs"
    given = small(tmp_path / "run", "--check-only", "--proofs", str(proofs))
    one = Session(plan_of(**vars(layer.parser().parse_args(given)), argv=[]))
    (v,) = [v for v in one.plan.chosen("residual") if v.name == "cpu.simd"]

    def proves(*of, **_):
        yield Proof(v, "forward", "fp32", cases=1, seeds=[1])
        one.stopped = True
        yield Proof(v, "backward", "fp32", "crash", evidence="its process died with SIGKILL", seeds=[1])

    monkeypatch.setattr(session, "prove", proves)
    with pytest.raises(session.Stopped):
        list(one.prove(v, ["forward"], "fp32"))
    one.run_.close()
    assert [(r["phase"], r["status"]) for r in one.proved.values()] == [("forward", "ok")]
    assert "SIGKILL" not in "".join(f.read_text() for f in proofs.rglob("*") if f.is_file())


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch):
    """Between two cases; what a signal does to processes: tests/bench/test_robust.py."""
    append = Run.append
    kept: list[Record] = []

    def append_once(self, record):
        if kept and record["shape"] != kept[0]["shape"]:
            raise KeyboardInterrupt
        kept.append(record)
        return append(self, record)

    monkeypatch.setattr(Run, "append", append_once)
    what = ("residual", "--only", "torch.eager,cpu.simd", "--seconds", "0.2", "-a", "B=1", "-a", "T=8,16")
    done = run(*what, "--out", str(tmp_path / "run"))
    assert done.returncode == cli.INTERRUPTED and "interrupted" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert len(rows) == len(kept) and all(r["status"] == "ok" for r in rows)
    assert {r["variant"] for r in rows} == {"torch.eager", "cpu.simd"}


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_and_nothing_written_is_lost(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        done = run(*small(disk / "run", "-a", "dtype=fp32,bf16"))
        lines = (disk / "run" / "records.jsonl").read_text().splitlines()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a lock of the run may still be held
    assert done.returncode == 1, done.stderr
    assert "No space left" in done.stderr or "full" in done.stderr
    assert "Traceback" not in done.stderr
    for line in lines[:-1]:
        json.loads(line)


def test_a_cuda_kernel_without_a_gpu_is_simulated_counted_and_not_timed(tmp_path):
    args = ["residual", "--only", "torch.eager,cuda.naive,cuda.shared", "--seconds", "0.4", "-a", "B=1", "-a", "T=64"]
    done = run(*args, "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["variant"]: r for r in json.loads(done.stdout.splitlines()[-1])["records"] if not r["control"]}
    assert rows["torch.eager"]["status"] == "ok" and rows["torch.eager"]["median_s"] > 0
    for name in ("cuda.naive", "cuda.shared"):
        row = rows[name]
        assert row["status"] == "simulated" and row["proof_cases"] > 2 and 0 < row["error_ratio"] <= 4
        assert not {"median_s", "samples", "bytes_per_s", "of_ceiling", "speedup"} & set(row)
        assert row["moved_of_minimum"] == row["sectors_of_ideal"] == 1
    # A naive kernel and a vectorised one can be told apart without a card.
    assert rows["cuda.naive"]["wide_instructions"] == 0 < rows["cuda.shared"]["wide_instructions"]
    assert rows["cuda.naive"]["sectors_per_request"] == 4 and rows["cuda.shared"]["sectors_per_request"] == 16
    assert "counted in the simulator" in done.stdout
    # A row of layer.csv says by itself what it is.
    table = pd.read_csv(tmp_path / "run" / "layer.csv").set_index("variant")
    assert set(table["shape.N"]) == {64 * 768} and set(table["threads"].dropna()) <= {1, os.cpu_count()}
    assert table["commit"].nunique() == 1 and table["device_name"].nunique() == 1
    assert "sectors_per_request" in table.columns


def test_a_broken_cuda_kernel_is_reported_with_its_line(tmp_path):
    args = ["residual", "--only", "cuda.missing_barrier", "--check-only", "--kernels", str(EVIL)]
    done = run(*args, "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "race" in done.stdout and "missing_barrier.cu:" in done.stdout


def test_the_simulator_can_be_left_out(tmp_path):
    """The row says so, nothing is compiled, and what was named and could not run has its exit code."""
    out = tmp_path / "run"
    where = ["--only", "cuda.naive,torch.eager", "--no-simulate", "--check-only", "--out", str(out)]
    assert layer.main(["residual", *where]) == cli.CANNOT_RUN
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {r["variant"]: r["status"] for r in rows} == {"cuda.naive": "skipped", "torch.eager": "ok"}
    assert "--no-simulate" in next(r["evidence"] for r in rows if r["variant"] == "cuda.naive")


class Ended:
    """A session in whose end these records are, of `--only`s names."""

    def __init__(self, only: str, **statuses: str):
        self.plan = plan_of(**vars(layer.parser().parse_args(["residual", "--only", only])), argv=[])
        self.records = [
            Record(variant=name.replace("_", "."), status=status, evidence="why", proof_cases=3 * (status != "skipped"))
            for name, status in statuses.items()
        ]
        self.done: dict[str, Record] = {}
        self.screen = Screen()

    untried = Session.untried


@pytest.mark.parametrize(
    ("only", "statuses", "code"),
    [
        ("torch.eager,cpu.simd", dict(torch_eager="ok", cpu_simd="ok"), cli.OK),
        ("torch.eager,cpu.simd", dict(torch_eager="ok", cpu_simd="timeout"), cli.TIMED_OUT),
        ("torch.eager,cpu.simd", dict(torch_eager="wrong", cpu_simd="timeout"), cli.WRONG),
        ("torch.eager,cpu.simd", dict(torch_eager="ok", cpu_simd="skipped"), cli.CANNOT_RUN),
        ("torch.eager,cpu.s*", dict(torch_eager="ok", cpu_simd="skipped"), cli.OK),
        ("cpu.s*", dict(cpu_simd="skipped"), cli.NOTHING_TRIED),
        ("cpu.simd,torch.eager", dict(torch_eager="crash", cpu_simd="skipped"), cli.WRONG),
    ],
)
def test_the_gravest_that_happened_is_the_exit_code(only, statuses, code):
    assert Session.exit_code(cast(Session, Ended(only, **statuses))) == code


def test_a_page_that_finds_the_disk_full_is_told_after_all_else(monkeypatch, tmp_path, capsys):
    def full(_: Path) -> str:
        raise DiskFull("no space left to write report.html")

    monkeypatch.setattr(session.report, "write_beside", full)
    with pytest.raises(DiskFull):
        layer.main(["residual", "--only", "torch.eager", "--smoke", "--json", "--out", str(tmp_path / "run")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["records"][0]["variant"] == "torch.eager"

"""The suite: its clock and its books with parts of a few lines, its summary and pack with made-up records, and one run
of the real thing on the CPU."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import HOME
from bench.cli import CannotGoOn
from bench.records import pack, read
from bench.show.summary import Summary
from bench.suite import parser
from bench.trial import suite
from bench.trial.suite import Part, Stage, Suite

# A part: `keep` writes a record into the folder it is given, as the real commands do.
STUB = """
import json, os, pathlib, signal, sys, time
name, out = sys.argv[1], pathlib.Path(sys.argv[-1])
def keep(**fields):
    out.mkdir(parents=True, exist_ok=True)
    (out / "env.json").touch()
    record = dict(schema=1, case_id=name, status="ok", layer="gelu", variant="cpu.simd", phase="forward", dtype="fp32")
    with (out / "records.jsonl").open("a") as file:
        print(json.dumps(record | fields), file=file)
with open({journal!r}, "a") as file:
    print(" ".join([name, *sys.argv[2:-1], out.name]), file=file)
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Makes suites of stubs that write to the same folder; restores the signal handlers that they change."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(suite, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(suite, "END_SECONDS", 0.0)
    monkeypatch.setattr(suite, "WEIGHTS", {"check": 1.0, "time": 1.0, "e2e": 1.0})
    yield Bench(tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def planned(*arguments: str) -> suite.Plan:
    return suite.plan_of(**vars(parser().parse_args(arguments)), argv=list(arguments))


class Bench:
    def __init__(self, folder: Path):
        self.out = folder / "out"
        self.journal = folder / "journal"
        self.stub = STUB.format(journal=str(self.journal))
        self.given: dict[str, list[float]] = {}  # the seconds that each part was started with

    def part(self, name: str, code: str = "keep()", resumes: bool = False) -> Part:
        def command(seconds: float) -> list[str]:
            self.given.setdefault(name, []).append(seconds)
            return ["-c", self.stub + code, name]

        return Part(name, command, resumes=resumes)

    def run(self, *stages: Stage, seconds: float = 60.0, resume: bool = False, device: str = "cpu") -> int:
        plan = planned("--out", str(self.out), "--minutes", str(seconds / 60), *(["--resume"] if resume else []))
        one = Suite(replace(plan, device=device), list(stages))
        try:
            return one.run()
        finally:
            one.records.close()

    def statuses(self) -> dict[str, str]:
        return {r["case_id"]: r["status"] for r in read.read_records(self.out)[0]}

    def evidence(self, name: str) -> str:
        return next(r["evidence"] for r in read.read_records(self.out)[0] if r["case_id"] == name)

    def started(self) -> list[str]:
        return [line.split()[0] for line in self.journal.read_text().splitlines()]


def test_a_part_that_fails_in_any_way_leaves_the_others(bench, capsys):
    parts = [
        bench.part("check-crash", "os.abort()"),
        bench.part("check-error", "sys.exit('error: no space left')"),
        bench.part("check-wrong", "keep(status='wrong', evidence='unwritten'); sys.exit(2)"),
        bench.part("check-none", "print('error: no compute-sanitizer', file=sys.stderr); sys.exit(3)"),
        bench.part("check-good"),
    ]
    assert bench.run(Stage("check", parts)) == 2
    assert bench.statuses() == {
        "check-crash": "crash",
        "check-error": "error",
        "check-wrong": "wrong",
        "check-none": "skipped",
        "check-good": "ok",
    }
    assert bench.evidence("check-crash") == "died with signal SIGABRT"
    assert bench.evidence("check-error") == "error: no space left"
    assert bench.evidence("check-none") == "error: no compute-sanitizer"
    said = capsys.readouterr()
    assert "check-good: ok" in said.err and "unwritten" in said.out
    assert bench.run(Stage("check", parts), resume=True) == 2, "what was wrong stays wrong"


def test_without_a_wrong_result_a_crash_is_exit_code_1(bench):
    assert bench.run(Stage("check", [bench.part("check-a"), bench.part("check-crash", "os.abort()")])) == 1


def test_a_part_that_takes_too_long_is_stopped_and_keeps_its_records(bench):
    obeys = "keep()\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    keep(case_id='at the end')"
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); keep(); time.sleep(60)"
    begin = time.monotonic()
    stages = [Stage("check", [bench.part("check-obeys", obeys)]), Stage("time", [bench.part("time-deaf", deaf)])]
    assert bench.run(*stages, Stage("e2e", [bench.part("e2e")]), seconds=9) == 0
    assert time.monotonic() - begin < 20
    assert bench.statuses() == {"check-obeys": "timeout", "time-deaf": "timeout", "e2e": "ok"}
    assert "records kept: 2" in bench.evidence("check-obeys")
    assert "records kept: 1" in bench.evidence("time-deaf")


def test_time_is_shared_by_weight_and_what_is_left_over_flows_on(bench):
    stages = [Stage("check", [bench.part("check-a"), bench.part("check-b")]), Stage("time", [bench.part("time-a")])]
    bench.run(*stages, seconds=40)
    (first,), (second,), (last,) = (bench.given[name] for name in ("check-a", "check-b", "time-a"))
    assert first == pytest.approx(10, abs=1), "half of the stage's half"
    assert second == pytest.approx(20, abs=3), "with what the first left"
    assert last == pytest.approx(40, abs=6)


def test_parts_of_a_stage_run_at_once(bench):
    wait = "keep(); begin = time.monotonic()\nwhile len(open({!r}).readlines()) < 3:\n    time.sleep(0.05)"
    parts = [bench.part(f"check-{i}", wait.format(str(bench.journal))) for i in range(3)]
    assert bench.run(Stage("check", parts, at_once=3)) == 0, "each waits until all have started"
    assert set(bench.statuses().values()) == {"ok"}


def test_left_over_time_is_for_what_was_cut_short_which_goes_on_where_it_was(bench, monkeypatch):
    monkeypatch.setattr(suite, "SECOND_TRY_SECONDS", 1.0)
    slow_once = "fresh = not (out / 'records.jsonl').exists(); keep(); time.sleep(60 if fresh else 0)"
    anew = "keep(); time.sleep(60 if out.name == 'e2e' else 0)"
    stages = [
        Stage("check", [bench.part("check-slow", slow_once, resumes=True), bench.part("check-crash", "os.abort()")]),
        Stage("e2e", [bench.part("e2e", anew)]),
        Stage("time", [bench.part("time-a")]),
    ]
    bench.run(*stages, seconds=15)
    assert bench.statuses() == {"check-slow": "ok", "check-crash": "crash", "e2e": "ok", "time-a": "ok"}
    assert bench.started() == ["check-slow", "check-crash", "e2e", "time-a", "check-slow", "e2e"]
    journal = bench.journal.read_text().splitlines()
    assert journal[0] == "check-slow --out check-slow" and journal[4] == "check-slow --resume check-slow"
    assert journal[5] == "e2e --out e2e-2", "what cannot go on begins beside"


def test_a_resumed_suite_runs_only_what_has_not_finished(bench):
    good, bad = bench.part("check-good"), "sys.exit(1) if not os.path.exists({0!r}) else keep()"
    flag = bench.journal.with_name("flag")
    parts = [good, bench.part("check-bad", bad.format(str(flag)))]
    assert bench.run(Stage("check", parts)) == 1
    flag.touch()
    assert bench.run(Stage("check", parts), resume=True) == 0
    assert bench.started() == ["check-good", "check-bad", "check-bad"]
    with pytest.raises(CannotGoOn, match="measured with --device cpu, not cuda"):
        bench.run(Stage("check", parts), resume=True, device="cuda")
    with pytest.raises(CannotGoOn, match="already holds a run"):
        bench.run(Stage("check", parts))


def test_ctrl_c_keeps_everything_and_sums_up(bench, capsys):
    parts = [bench.part("check-a"), bench.part("check-slow", "keep(status='wrong'); time.sleep(60)")]

    def interrupt() -> None:
        while not (bench.out / "check-slow" / "records.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    assert bench.run(Stage("check", [*parts, bench.part("check-never")])) == 130
    assert time.monotonic() - begin < 20
    assert bench.statuses() == {"check-a": "ok", "check-slow": "timeout"}
    assert "interrupted; records kept: 1" in bench.evidence("check-slow")
    assert json.loads((bench.out / "summary.json").read_text())["failed"]


def test_logs_hold_what_a_part_said_without_paths_of_this_machine(bench):
    bench.run(Stage("check", [bench.part("check-a", "print('built', '/somewhere/secret/lib.so'); keep()")]))
    assert (bench.out / "logs" / "check-a.out").read_text() == "built <path>/lib.so\n"


# --- the parts ---


def of(device: str, *arguments: str) -> dict[str, Stage]:
    plan = planned("--out", "nowhere", "--layers", "gelu,matmul", *arguments)
    return {s.name: s for s in suite.stages(replace(plan, device=device))}


def test_a_gpu_gets_all_stages_and_a_cpu_its_half():
    gpu, cpu = of("cuda"), of("cpu")
    assert list(gpu) == ["doctor", "check", "sanitize", "time", "e2e"]
    assert list(cpu) == ["doctor", "check", "time", "e2e"]
    assert list(of("cuda", "--stage", "check")) == ["doctor", "check", "sanitize"]
    assert list(of("cuda", "--stage", "e2e")) == ["doctor", "e2e"]


def test_commands_are_those_of_the_project_and_fit_their_time():
    from bench import e2e, layer, sanitize

    found = of("cuda", "--model", "gpt2-tiny", "--kernels", "tests/evil")
    readers = {"bench.layer": layer.parser(), "bench.sanitize": sanitize.parser(), "bench.e2e": e2e.parser()}
    for stage in list(found.values())[1:]:
        for part in stage.parts:
            m, module, *arguments = part.command(100.0)
            readers[module].parse_args(arguments)
            assert m == "-m" and "cuda" in arguments
            assert ("--kernels" in arguments) == (module != "bench.e2e")
    gelu, matmul = (layer.parser().parse_args(p.command(100.0)[2:]) for p in found["time"].parts)
    assert gelu.seconds == 12 and 100 / 10 / 3 < matmul.seconds < 100 / 10, "five shapes, two passes"
    checked = layer.parser().parse_args(found["check"].parts[0].command(1.0)[2:])
    assert gelu.axis == ["dtype=bf16"] and checked.axis == ["dtype=bf16,fp32"] and checked.check_only
    assert all(s.at_once == 1 for name, s in found.items() if name in ("time", "e2e")), "nothing runs beside a clock"
    quick, full = found["e2e"].parts
    assert (
        "--steps" in quick.command(300.0) and "--steps" in full.command(30.0) and "--steps" not in full.command(300.0)
    )
    assert len(of("cpu")["e2e"].parts) == 1


# --- what came out ---


def write(folder: Path, *records: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "records.jsonl").open("a") as file:
        for n, record in enumerate(records):
            print(json.dumps({"schema": 1, "case_id": f"{n}", **record}), file=file)


def timed(variant: str, median: float, **fields) -> dict:
    row = {"status": "ok", "layer": "gelu", "phase": "forward", "shape_name": "gpt2-124m", "dtype": "bf16"}
    return row | {"variant": variant, "median_s": median, "cache": "cold", "timer": "busy"} | fields


def made_up(out: Path) -> None:
    bad = {"status": "wrong", "evidence": "unwritten: poison survived | in out"}
    write(out, {"case_id": "time-gelu", "status": "ok"}, {"case_id": "e2e", "status": "timeout", "evidence": "cut"})
    write(
        out / "time-gelu",
        timed("torch.eager", 4e-6),
        timed("torch.compile", 3e-6),
        timed("cuda.fast", 2e-6),
        timed("cuda.fast", 1e-6, cache="warm"),
        timed("torch.eager", 1e-7, control=True),
        timed("cuda.none", 1e-9, status="skipped"),
        timed("cuda.bad", 1e-9, **bad),
        timed("cuda.bad", 1e-9, shape_name="gpt2-124m/other", **bad),
    )
    write(out / "check-gelu", timed("cuda.bad", 1e-9, **bad))
    step = {"layer": "gpt2-124m", "phase": "step", "dtype": "bf16", "shape": {"B": 64, "T": 1024}, "status": "ok"}
    ours = {"variant": "ours", "median_s": 0.05, "tokens_per_s": 1.3e6, "speedup": 1.25, "baseline": "torch.compile"}
    write(out / "e2e-quick", step | ours | {"median_s": 99.0})
    write(out / "e2e", step | ours | {"mfu_palm_of_ceiling": 0.45}, step | {"variant": "torch.compile"})


def test_the_summary_ranks_what_is_right_and_tells_each_failure_once(tmp_path, capsys):
    made_up(tmp_path)
    summary = Summary.of(tmp_path)
    (best,) = summary.fastest
    assert (best["variant"], best["median_s"], best["fastest_torch_s"], best["variants"]) == (
        "cuda.fast",
        2e-6,
        3e-6,
        3,
    )
    assert [f["variant"] for f in summary.failed] == ["cuda.bad"]
    assert [(r["variant"], r["median_s"]) for r in summary.training] == [("ours", 0.05), ("torch.compile", None)]
    assert summary.exit_code() == 2
    summary.write(tmp_path)
    summary.print()
    text, printed = (tmp_path / "summary.md").read_text(), capsys.readouterr().out
    for shown in ("cuda.fast", "1.50x", "poison survived", "1.25x torch.compile", "e2e", "45%"):
        assert shown in text and shown in printed, shown
    lines = [line for line in text.splitlines() if line.startswith("| gelu | cuda.bad")]
    assert len(lines) == 1 and lines[0].count("|") == 7, "a bar in the evidence is no new cell"
    assert json.loads((tmp_path / "summary.json").read_text())["fastest"] == summary.fastest


def test_a_summary_of_nothing_says_so(tmp_path, capsys):
    write(tmp_path, {"case_id": "doctor", "status": "ok"})
    summary = Summary.of(tmp_path)
    summary.write(tmp_path)
    summary.print()
    assert "fastest variant, caches cold: none" in capsys.readouterr().out and summary.exit_code() == 0


def test_a_pack_obeys_its_limits_and_holds_everything_that_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "PACK_BYTES", 30_000)
    noise = random.Random(0)
    out = tmp_path / "out"
    made_up(out)
    for name, size in [("time-a", 12_000), ("time-b", 12_000), ("time-c", 12_000), ("check-a", 40_000)]:
        (out / name).mkdir()
        (out / name / "samples.bin").write_bytes(noise.randbytes(size))
    (out / "check-a" / "zeros.bin").write_bytes(bytes(1_000_000))
    packed = pack.pack(out)
    assert pack.pack(out) == packed, "and again over the old one"
    assert len(packed) <= pack.PACK_FILES and all(p.stat().st_size <= 30_000 for p in packed)
    assert "not packed, too large: check-a/samples.bin" in capsys.readouterr().err
    again = tmp_path / "again"
    for file in packed:
        with tarfile.open(file) as archive:
            archive.extractall(again, filter="data")
    files = {f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file() and f.parent.name != "pack"}
    del files[Path("check-a/samples.bin")]
    assert {f.relative_to(again): f.read_bytes() for f in again.rglob("*") if f.is_file()} == files


def test_a_pack_of_too_much_keeps_the_most_important(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "PACK_BYTES", 20_000)
    made_up(tmp_path)
    for n in range(12):
        (tmp_path / f"check-{n}").mkdir()
        (tmp_path / f"check-{n}" / "samples.bin").write_bytes(random.Random(n).randbytes(12_000))
    packed = pack.pack(tmp_path)
    assert len(packed) == pack.PACK_FILES and all(p.stat().st_size <= 20_000 for p in packed)
    assert [p.name for p in packed[:3]] == ["1-suite.tar.gz", "2-e2e.tar.gz", "3-time.tar.gz"]
    assert capsys.readouterr().err.count("not packed") == 12 - 5


# --- the command ---


def run(*args: str, timeout: float = 800) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.suite", *args]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--device", "cuda"], 3, "no usable NVIDIA GPU"),
        (["--layers", "gelu,atention"], 64, "did you mean 'attention'"),
        (["--stage", "chek"], 64, "did you mean 'check'"),
    ],
)
def test_mistakes_are_one_line(args, code, says, tmp_path):
    done = run("--out", str(tmp_path / "out"), *args)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


WRONG = '''\
"""Forgets to add."""

def forward(a, b, *, out):
    out.copy_(a)
'''


@pytest.mark.slow
@pytest.mark.timeout(900)  # of a busy machine; a quiet one takes one
def test_the_whole_of_it_on_the_cpu_with_a_broken_variant(tmp_path):
    variant = tmp_path / "kernels" / "torch" / "residual" / "forgets.py"
    variant.parent.mkdir(parents=True)
    variant.write_text(WRONG)
    out = tmp_path / "out"
    args = ["--out", str(out), "--device", "cpu", "--layers", "residual", "--model", "gpt2-tiny", "--minutes", "12"]
    args += ["--kernels", str(tmp_path / "kernels"), "--pack"]
    done = run(*args, "--json")
    assert done.returncode == 2, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert {p["case_id"]: p["status"] for p in document["parts"]} == {
        "doctor": "ok",
        "check-residual": "wrong",
        "time-residual": "wrong",
        "e2e": "ok",
    }
    for name in ("check-residual", "time-residual", "e2e"):
        assert read.read_records(out / name)[0], name
    assert json.loads((out / "doctor.json").read_text())["abilities"]
    assert [f["variant"] for f in document["failed"]] == ["torch.forgets"] * 2, (
        "once for each dtype, however often it was tried"
    )
    (best,) = document["fastest"]
    assert best["layer"] == "residual" and best["variant"] != "torch.forgets" and best["fastest_torch_s"]
    assert {r["variant"] for r in document["training"]} >= {"ours", "torch.eager"}
    assert len(list((out / "pack").iterdir())) <= 8
    before = (out / "records.jsonl").read_text()
    again = run(*args, "--resume")
    assert again.returncode == 2 and again.stderr.count("finished before") == 4
    assert (out / "records.jsonl").read_text() == before
    shutil.rmtree(out)

"""`bench.e2e --minutes`: what is finished is on disk, ours and one baseline come first, a failure costs its own row."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import HOME, cli, compare, report
from bench.core.variants import discover
from bench.models import CallId, choose, chosen
from bench.models.program import step_calls
from bench.records.read import MEASURED, latest, read_records
from bench.records.run import Run
from bench.training import WARM_UP, deadline, pick, plan
from bench.training.contestants import OutOfMemory
from bench.training.deadline import Deadline
from bench.training.field import OURS
from bench.training.rooms import Job
from bench.training.session import TURNS_ALONE, Session
from tests import commands
from tests.bench.training.test_session_gpu import FAKE, SMALL, B, T, planned, quick

NORM = CallId("global_norm", "", "forward")


def choice_file(folder: Path) -> Path:
    """torch.eager for every call."""
    eager = {v.layer: v for v in discover() if v.name == "torch.eager"}
    folder.mkdir(exist_ok=True)
    choice = {id: eager[id.layer] for id in step_calls(SMALL, B, T, "bf16")}
    return chosen.write(folder, choice, chip="Made-up GPU", run="before", model="small", dtype="bf16", B=B, T=T)


def altered(file: Path, call: str, **entry: str) -> Path:
    document = json.loads(file.read_text())
    document["kernels"][call] |= entry
    file.write_text(json.dumps(document))
    return file


# --- a whole run ---

WAITING = ("compile-plain", "eager", "eager-too", "compile")  # whatever does not begin with "compile" is eager


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with --minutes whose first baseline hangs in its compiler, the second takes part, the third comes late, and
    for the fourth no time is left: (its folder, what a kill after each record would have left)."""
    import numpy as np

    from bench.text import shards

    home = tmp_path_factory.mktemp("in_time")
    shards.write_tokens(home / "train.bin", np.random.default_rng(0).integers(0, SMALL.v, 20000).astype(np.uint16))
    file = altered(choice_file(home / "before"), str(NORM), source="0" * 16)
    line = ("gpt2-tiny", "--device", FAKE, "--batch", str(B), "--kernels", f"torch.eager,{file}", "--steps", "22")
    base = planned(*line, "--minutes", "9", "--data", str(home / "train.bin"), "--out", str(home / "run"))
    job = Job(SMALL, B, T, "bf16", FAKE)
    session = Session(replace(base, job=job, baselines=WAITING))
    states: list[Path] = []
    append, end_compiling, reserve = Run.append, Session._end_compiling, Session._reserve

    def append_and_look(self, record):
        done = append(self, record)
        states.append(Path(shutil.copytree(self.folder, home / f"state{len(states)}")))
        return done

    def hangs(self, field, e, limit, late=False):
        return end_compiling(self, field, e, 0.01 if e.baseline == "compile-plain" else limit, late)

    def all_of_it(self, steps):
        return float("inf") if steps > 20 else reserve(self, steps)  # nobody may join any more

    variables = commands.with_variables({"LAYERBENCH_CACHE": str(home / "cache")})
    with variables, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "append", append_and_look)
        patch.setattr(Session, "_end_compiling", hangs)
        patch.setattr(Session, "_reserve", all_of_it)
        assert session.run() == cli.OK
    return home / "run", states


def rows_of(folder: Path) -> dict[str, dict]:
    records, problems = read_records(folder, MEASURED)
    assert not problems, problems
    return {r["variant"]: dict(r) for r in latest(records).values()}


def test_a_baseline_that_does_not_get_ready_costs_its_own_row(run):
    rows = rows_of(run[0])
    assert rows["torch.compile-plain"]["status"] == "skipped"
    assert rows["torch.compile-plain"]["evidence"].startswith("given up: it was not ready after 0 s")
    assert rows["ours"]["status"] == rows["torch.eager"]["status"] == "ok"
    assert rows["torch.compile"]["status"] == "skipped" and "no time was left" in rows["torch.compile"]["evidence"]


def test_a_late_one_takes_all_steps_and_is_compared_by_the_turns_it_shared(run):
    rows = rows_of(run[0])
    ours, late = rows["ours"], rows["torch.eager-too"]
    assert len(ours["losses"]) == len(late["losses"]) == len(rows["torch.eager"]["losses"])
    assert len(late["samples"]) == len(ours["samples"]) - TURNS_ALONE > 0
    assert {"speedup", "baseline"} <= ours.keys() and ours["baseline"].startswith("torch.eager")
    assert late["losses"][0] == pytest.approx(ours["losses"][0], rel=1e-3), "it begins at the same parameters"


def test_at_every_moment_there_is_a_run_that_can_be_read(run, tmp_path, capsys, monkeypatch):
    """Ours, its kernels and one baseline before all else; a kill costs the turn under way."""
    folder, states = run
    monkeypatch.chdir(tmp_path)
    first, last = rows_of(states[0]), rows_of(states[-1])
    assert list(first) == ["ours"] and first["ours"]["evidence"] == "built; no step taken yet"
    assert first["ours"]["kernels"] and chosen.read(states[0] / chosen.FILE).kernels
    told = [(r["variant"], len(r.get("losses", [])), "median_s" in r) for r in read_records(folder)[0]]
    timed = next(i for i, (_, _, is_timed) in enumerate(told) if is_timed)
    late = next(i for i, (name, _, _) in enumerate(told) if name == "torch.eager-too")
    assert timed < late, "ours and one baseline are on disk before another joins"
    ends = [turn.steps.stop for turn in plan.turns(22, gpu=True)]
    assert {steps for name, steps, _ in told if name == "ours"} == {0, *ends}, "after every turn"
    assert last["ours"]["in_context_s"] and "in_context_s" not in rows_of(states[-4])["ours"]
    early = states[timed]
    for state in (states[0], early):
        assert report.main([str(state)]) == cli.OK
    assert compare.main([str(early), str(folder)]) == cli.OK
    half = early / "records.jsonl"
    half.write_bytes(half.read_bytes()[:-40])  # killed while it was writing
    records, problems = read_records(early)
    assert records and len(problems) == 1


def test_the_row_says_who_chose_the_kernels_and_what_was_not_taken(run):
    ours = rows_of(run[0])["ours"]
    assert re.match(r"chosen beforehand: kernels.json, on Made-up GPU, [\d-]{10}T\d\d:\d\d, run before", ours["chosen"])
    assert ours["chosen"].endswith("not used for global_norm forward: torch.eager has another source now")
    again = chosen.read(run[0] / chosen.FILE)
    assert again.kernels[str(NORM)] == ("torch.eager", next(_eager("global_norm")).source_hash())


def _eager(layer: str):
    return (v for v in discover() if (v.layer, v.name) == (layer, "torch.eager"))


@pytest.mark.slow
def test_a_killed_command_leaves_what_was_finished(tmp_path):
    """kill -9, when some rows of steps are there."""
    line = [*map(str, quick(tmp_path)), "--batch", "2", "--kernels", "torch.eager", "--steps", "500"]
    command = [sys.executable, "-m", "bench.e2e", *line]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=HOME, stdout=quiet, stderr=quiet, start_new_session=True)
    file, end = tmp_path / "run" / "records.jsonl", time.monotonic() + 200
    while time.monotonic() < end and not (file.exists() and file.read_bytes().count(b"\n") > 6):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    rows = rows_of(tmp_path / "run")
    assert rows["ours"]["status"] == "ok" and rows["ours"]["speedup"] > 0


# --- time ---


def test_a_command_gets_no_more_than_is_left(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    found = Deadline(2, 900.0)
    assert found.left == 1020 - deadline.END_S - now
    assert found.limit(600) == found.left and found.limit(5) == 5 and found.limit(600, 0.5) == found.left / 2
    now = 2000.0
    assert found.left < 0 and found.limit(600) == deadline.LEAST_LIMIT_S
    assert Deadline(None, 900.0).limit(600) == 600 and not Deadline(None, 0.0).bounded


@pytest.mark.parametrize("minutes", [1, 1.5, 4])
def test_no_turn_begins_that_would_not_end_in_time(tmp_path, monkeypatch, minutes):
    """A scripted clock: the judge takes a second for each step, the others two."""
    now = 0.0
    monkeypatch.setattr("bench.training.session.batches_of", lambda plan: None)
    line = ("--device", FAKE, "--kernels", "torch.eager", "--out", str(tmp_path / "run"), "--minutes", str(minutes))
    session = Session(planned("gpt2-tiny", *line), begin=0.0)
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("bench.training.session.time", clock)
    monkeypatch.setattr(deadline, "time", clock)

    def passes(seconds: float):
        def step(*arguments: object) -> None:
            nonlocal now
            steps = [a for a in arguments if isinstance(a, plan.Turn)]
            taken = session.turns[-1].steps.stop if session.turns else 0
            now += seconds * (len(steps[0].steps) if steps else arguments[1] - taken)  # type: ignore[operator]
            session.judge_s = 1.0

        return step

    monkeypatch.setattr(session, "_judge", passes(1.0))
    monkeypatch.setattr(session, "_turn", passes(2.0))
    monkeypatch.setattr(session, "_keep", lambda: None)
    notes: list[str] = []
    field: Any = SimpleNamespace(entrants=[OURS], baselines={}, note=notes.append)
    session.field = field
    session._train(field)
    taken = session.turns[-1].steps.stop
    assert now == 3 * taken <= session.deadline.end
    if taken < session.plan.turns[-1].steps.stop:
        assert session.stopped == f"--minutes {minutes:g}: stopped after {taken} of 38 steps" and notes
        assert session.deadline.left < session._turn_seconds(6) + session._reserve(0), "another would have been late"
    assert (taken == 38) == (minutes == 4) and taken > WARM_UP


def test_with_minutes_the_plain_compiler_comes_first():
    gpu, cpu = planned("gpt2-124m", "--device", FAKE, "--minutes", "4"), planned("gpt2-124m", "--minutes", "4")
    assert gpu.baselines == ("compile-plain", "eager", "compile") and cpu.baselines == ("compile", "eager")
    turns = [t for t in gpu.turns if t.timed]
    assert len(turns) >= TURNS_ALONE * len(gpu.baselines), "enough for each of them to join"
    assert gpu.turns[0].steps == range(WARM_UP)


# --- a choice made beforehand ---


def job_of(dtype: str = "bf16") -> Job:
    return Job(SMALL, B, T, dtype, FAKE)


def found_with(file: Path, *more: str) -> pick.Candidates:
    calls = step_calls(SMALL, B, T, "bf16")
    return pick.candidates(choose.parse(",".join([*more, str(file)])), discover(), calls, job_of())


def test_a_choice_serves_as_it_stands_and_nothing_is_raced(tmp_path):
    found = found_with(choice_file(tmp_path))
    assert all([v.name for v in some] == ["torch.eager"] for some in found.pool.values()) and not found.stale
    assert "not used" not in str(found)
    named = found_with(choice_file(tmp_path), "matmul=torch.compile")
    assert {v.name for id, some in named.pool.items() for v in some if id.layer == "matmul"} == {"torch.compile"}


@pytest.mark.parametrize(("chip", "told"), [("Made-up GPU", ""), ("Another", "; here it is Another")])
def test_a_choice_of_another_card_is_taken_and_says_so(tmp_path, chip, told):
    notes: list[str] = []
    field: Any = SimpleNamespace(chip=lambda: chip, note=notes.append)
    found = found_with(choice_file(tmp_path))
    picked = pick.pick(field, found, {})
    assert picked.chosen == str(found) + told and notes == [picked.chosen]
    assert {v.name for v in picked.choice.values()} == {"torch.eager"}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (dict(source="0" * 16), "torch.eager has another source now"),
        (dict(variant="torch.gone"), "there is no torch.gone any more"),
        (dict(variant="cpu.simd"), "another source"),
    ],
)
def test_a_stale_choice_is_raced_anew_and_said(tmp_path, entry, why):
    found = found_with(altered(choice_file(tmp_path), str(NORM), **entry))
    assert list(found.stale) == [NORM] and why in found.stale[NORM] and f"{NORM}: {found.stale[NORM]}" in str(found)
    assert len(found.pool[NORM]) > 1, "all that can serve it"
    assert all(len(some) == 1 for id, some in found.pool.items() if id != NORM)


def test_what_cannot_run_here_is_raced_anew(tmp_path):
    simd = next(v for v in discover() if (v.layer, v.name) == ("global_norm", "cpu.simd"))
    file = altered(choice_file(tmp_path), str(NORM), variant=simd.name, source=simd.source_hash())
    assert "runs on the CPU" in found_with(file).stale[NORM]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "no choice of kernels"),
        ("[]", "of schema 1"),
        ('{"schema": 2}', "of schema 1"),
        ('{"schema": 1, "kernels": {"matmul/qkv forward": "cpu.simd"}}', "a variant and a source"),
        ('{"schema": 1, "kernels": {}}', "chip is missing"),
    ],
)
def test_a_file_that_is_no_choice_is_refused(tmp_path, text, why):
    file = tmp_path / "kernels.json"
    file.write_text(text)
    with pytest.raises(cli.CannotGoOn, match=why) as refused:
        found_with(file)
    assert refused.value.code == cli.USAGE
    with pytest.raises(cli.CannotGoOn, match=r"missing\.json: no such file"):
        found_with(tmp_path / "missing.json")
    with pytest.raises(cli.CannotGoOn, match="one of them"):
        choose.parse("a.json,b.json")


# --- memory ---


def test_a_batch_is_halved_only_when_building_one_after_the_other_did_not_fit(tmp_path, monkeypatch):
    """Ours is built while a baseline compiles: that both together were too much says nothing of the batch."""
    tried: list[tuple[bool, int]] = []

    def too_much(self, field):
        tried.append((self.side_by_side, self.plan.job.B))
        raise OutOfMemory("too much") if len(tried) < 4 else cli.CannotGoOn("enough")

    monkeypatch.setattr(Session, "_set_up", too_much)
    monkeypatch.setattr("bench.training.session.batches_of", lambda plan: None)
    line = ("--device", FAKE, "--kernels", "torch.eager", "--seq", "8", "--out", str(tmp_path / "run"))
    session = Session(planned("gpt2-tiny", *line))
    most = session.plan.job.B
    with pytest.raises(cli.CannotGoOn, match="enough"):
        session.run()
    assert tried == [(True, most), (False, most), (False, most // 2), (False, most // 4)]

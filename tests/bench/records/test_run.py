import csv
import json
import os
import socket
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from bench import HOME
from bench.cli import FAILED, CannotGoOn
from bench.core import files
from bench.machine import facts
from bench.records.read import SUITE, documents, load, read_environment, read_records
from bench.records.run import SCHEMA, Run
from bench.records.scrub import scrub


@pytest.fixture(autouse=True)
def quick_environment(monkeypatch):
    """Reading the machine is tested in test_machine; here one reading serves all."""
    monkeypatch.setattr(facts, "describe", lambda: DESCRIPTION)


DESCRIPTION: dict[str, Any] = {
    "cpu": {
        "model": "A CPU",
        "isa": ["avx2"],
        "usable": 2,
        "serial": "0123",
        "cache_bytes": {"L1d": 1, "tag": 2},
    },
    "memory_bytes": 8,
    "gpus": [{"name": "NVIDIA H200", "uuid": "GPU-1234"}],
    "versions": {"torch": "2.13.0", "compiler": "g++ 12"},
    "hostname": "somewhere",
}


def record(case, status="ok", **more):
    return {"case_id": case, "status": status, "layer": "gelu", "variant": "cpu.simd", **more}


def add_a_line(file):
    """As somebody else does, whose row looks like any."""
    with file.open("a") as more:
        more.write(json.dumps({"schema": SCHEMA, **record("b"), "evidence": "mine"}) + "\n")


def swap_a_word(file):
    """Of the same length."""
    text = file.read_text().replace("wrong", "ok   ")
    file.write_text(text)


def put_another_in_its_place(file):
    other = file.with_suffix(".other")
    other.write_text("")
    os.replace(other, file)


@pytest.mark.parametrize("change", [add_a_line, swap_a_word, put_another_in_its_place, os.remove])
def test_what_somebody_else_does_to_a_runs_records_is_undone(change, tmp_path, capsys):
    """Before it is read, before the next is written, and at the end."""
    run = Run.create("layer", tmp_path / "r")
    whole = []
    for i in range(2):
        whole.append(run.append(record(f"a{i}", "wrong", evidence="wrong")))
        change(run.folder / "records.jsonl")
    assert run.records() == whole
    change(run.folder / "records.jsonl")
    run.close()
    assert read_records(run.folder) == (whole, [])
    assert capsys.readouterr().err.count("somebody else changed") == 3


def test_a_run_that_goes_on_keeps_what_it_found(tmp_path, capsys):
    run = Run.create("layer", tmp_path / "r")
    run.append(record("a"))
    run.close()
    run = Run.resume(tmp_path / "r")
    run.append(record("b"))
    run.close()
    assert [r["case_id"] for r in read_records(tmp_path / "r")[0]] == ["a", "b"]
    assert "somebody" not in capsys.readouterr().err


def test_texts_of_a_record_steer_no_terminal(tmp_path):
    """Whoever wrote the file."""
    line = {"schema": SCHEMA, **record("a"), "variant": "\x1b[2Jours", "kernels": {"\x1b]0;x\x07key": ["\ud800"]}}
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    (read,), _ = read_records(tmp_path)
    assert (read["variant"], read["kernels"]) == ("ours", {"key": ["\ufffd"]})


def test_records_come_back_in_order_with_run_time_and_schema(tmp_path):
    run = Run.create("layer", tmp_path / "r", ["gelu", "--all"])
    run.append(record("a", samples=[[1.0, 2.0], [1.5]]))
    run.append(record("b", "wrong", evidence="poison survived in 12 % of out"))
    first, second = run.records()
    assert first["samples"] == [[1.0, 2.0], [1.5]]
    assert second["evidence"] == "poison survived in 12 % of out"
    assert first["run"] == "r" and first["schema"] == SCHEMA and first["utc"].endswith("Z")
    environment = read_environment(tmp_path / "r")
    assert environment["command"] == "python -m bench.layer gelu --all"
    assert environment["cpu"]["model"] == "A CPU"


def test_a_record_needs_a_case_and_a_known_status(tmp_path):
    run = Run.create("layer", tmp_path / "r")
    with pytest.raises(ValueError, match="case_id"):
        run.append({"status": "ok"})
    with pytest.raises(ValueError, match="fine"):
        run.append(record("a", "fine"))
    assert run.records() == []


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    run = Run.create("layer", tmp_path / "r")
    run.append(record("a", low_s=1.0, high_s=float("inf"), norms=[float("nan"), 1.0]))
    line = (tmp_path / "r" / "records.jsonl").read_text()
    assert "Infinity" not in line and "NaN" not in line
    assert run.records()[0]["norms"] == [None, 1.0]


def test_numpy_values_are_written_as_numbers(tmp_path):
    import numpy as np

    run = Run.create("layer", tmp_path / "r")
    run.append(record("a", noise=np.float64(1.5), seeds=np.arange(3), calls=np.int64(4), control=np.bool_(True)))
    read = run.records()[0]
    assert (read["noise"], read["seeds"], read["calls"], read["control"]) == (1.5, [0, 1, 2], 4, True)


def test_default_folders_are_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [Run.create("layer") for _ in range(20)]
    assert len({run.folder for run in runs}) == 20
    assert all(run.folder.parent.name == "runs" and "-layer-" in run.folder.name for run in runs)


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    Run.create("layer", tmp_path / "r").close()
    with pytest.raises(CannotGoOn, match="already holds a run"):
        Run.create("layer", tmp_path / "r")


def test_two_runs_at_once_do_not_mix(tmp_path):
    run = Run.create("layer", tmp_path / "r")
    with pytest.raises(CannotGoOn, match="another run is writing"):
        Run.create("layer", tmp_path / "r")
    with pytest.raises(CannotGoOn, match="another run is writing"):
        Run.resume(tmp_path / "r")
    run.close()
    Run.resume(tmp_path / "r")


def test_a_killed_run_is_resumed_after_its_half_line(tmp_path):
    folder = tmp_path / "r"
    code = f"""
        import os, sys
        from pathlib import Path
        from bench.machine import facts
        from bench.records.run import Run
        facts.describe = lambda: {DESCRIPTION!r}
        run = Run.create("layer", Path({str(folder)!r}))
        run.append(dict(case_id="a", status="ok"))
        os.write(run._lines.handle, b'{{"schema": 1, "case_id": "b", "sta')
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=HOME)
    assert done.returncode == -9
    run = Run.resume(folder)
    run.append(record("b"))
    records, problems = read_records(folder)
    assert [r["case_id"] for r in records] == ["a", "b"]
    assert len(problems) == 1 and problems[0].line == 2
    assert "records.jsonl:2" in str(problems[0]) and "skipped" in str(problems[0])
    assert len(read_environment(folder)["resumed"]) == 1


@pytest.mark.parametrize(
    ("then", "now", "kept"),
    [
        (("a", False), ("a", False), ("a", False)),
        (("a", False), ("b", False), ("a", True)),
        (("a", False), ("a", True), ("a", True)),
        (("a", True), ("a", False), ("a", True)),
        (("a", False), (None, None), ("a", True)),
        ((None, None), ("b", False), ("b", False)),
    ],
)
def test_a_resumed_run_keeps_the_commit_that_its_records_are_of(then, now, kept, tmp_path, monkeypatch):
    def at(git):
        commit, dirty = git
        monkeypatch.setattr(facts, "describe", lambda: DESCRIPTION | {"git": {"commit": commit, "dirty": dirty}})

    at(then)
    Run.create("layer", tmp_path / "r").close()
    at(now)
    Run.resume(tmp_path / "r").close()
    assert tuple(read_environment(tmp_path / "r")["git"].values()) == kept


def test_lines_that_are_no_objects_are_told_from_those_that_are(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"a": 1}\n\n[1]\n{"b"\n' + "[" * 100_000 + '\n{"c": "\\u001b[2Jd"}\n')
    assert list(documents(file)) == [{"a": 1}, None, None, None, {"c": "d"}]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cpu": {"model": ["x"]}}, "cpu.model"),
        ({"cpu": {"isa": [1]}}, "isa"),
        ({"gpus": [{"name": {}}]}, "gpus"),
        ({"git": {"commit": 3}}, "commit"),
        ({"git": []}, "git"),
        ({"started": 5}, "started"),
    ],
)
def test_an_environment_is_held_to_its_types_and_may_hold_more(tmp_path, wrong, said):
    folder = tmp_path / "r"
    Run.create("layer", folder).close()
    file = folder / "env.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"cpu": {**whole["cpu"], "of another version": 1}, "more": {}}))
    assert read_environment(folder)["started"]
    file.write_text(json.dumps(whole | wrong))
    with pytest.raises(CannotGoOn, match=rf"env\.json is damaged: it\..*{said}"):
        read_environment(folder)


@pytest.mark.parametrize(
    "wrong",
    [{"shape": {"T": {}}}, {"canary": {"warm": 1.0}}, {"median_s": 1e300}, {"shape": [3]}],
)
def test_a_record_of_another_kind_is_skipped(tmp_path, wrong):
    run = Run.create("layer", tmp_path / "r")
    run.append(record("a"))
    run.close()
    file = tmp_path / "r" / "records.jsonl"
    file.write_text(file.read_text() + json.dumps(json.loads(file.read_text()) | wrong) + "\n")
    records, (problem,) = read_records(tmp_path / "r")
    assert len(records) == 1 and next(iter(wrong)) in problem.why


def test_what_somebody_wrote_into_a_run_steers_no_terminal(tmp_path):
    folder = tmp_path / "r"
    run = Run.create("layer", folder)
    run.append(record("a"))
    run.close()
    file, told = folder / "records.jsonl", folder / "env.json"
    file.write_text(file.read_text().replace('"a"', r'"\u001b[31ma"'))
    told.write_text(json.dumps(json.loads(told.read_text()) | {"command": "\x1b[2J"}))
    assert [r["case_id"] for r in read_records(folder)[0]] == ["a"] and read_environment(folder)["command"] == ""


def test_a_whole_last_line_without_its_newline_counts(tmp_path):
    folder = tmp_path / "r"
    run = Run.create("layer", folder)
    run.append(record("a"))
    run.close()
    file = folder / "records.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    run = Run.resume(folder)
    run.append(record("b"))
    records, problems = read_records(folder)
    assert [r["case_id"] for r in records] == ["a", "b"] and not problems


@pytest.mark.parametrize(
    "damage",
    [b"{", b"\xff\xfe\x00", b"[1, 2]", b'"text"', b'{"a": 1}', b"null", b'{"case_id": "x", "status": "ok"}'],
)
def test_a_damaged_line_is_told_with_file_and_line(tmp_path, damage, capsys):
    folder = tmp_path / "r"
    run = Run.create("layer", folder)
    run.append(record("a"))
    run.close()
    with open(folder / "records.jsonl", "ab") as file:
        file.write(damage + b"\n")
    run = Run.resume(folder)
    run.append(record("b"))
    assert [r["case_id"] for r in run.records()] == ["a", "b"]
    told = capsys.readouterr().err
    assert "records.jsonl:2:" in told and "skipped" in told


def test_resume_refuses_another_machine(tmp_path, monkeypatch):
    Run.create("layer", tmp_path / "r").close()
    other = {**DESCRIPTION, "cpu": {**DESCRIPTION["cpu"], "model": "Another CPU"}}
    monkeypatch.setattr(facts, "describe", lambda: other)
    with pytest.raises(CannotGoOn, match=r"A CPU then, Another CPU now"):
        Run.resume(tmp_path / "r")


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(CannotGoOn, match="no run to resume"):
        Run.resume(tmp_path)


def test_a_damaged_environment_is_told(tmp_path):
    Run.create("layer", tmp_path / "r").close()
    (tmp_path / "r" / "env.json").write_text("{")
    with pytest.raises(CannotGoOn, match=r"env\.json is damaged"):
        Run.resume(tmp_path / "r")


def test_csv_has_a_row_a_case_and_the_last_record_wins(tmp_path):
    run = Run.create("layer", tmp_path / "r")
    run.append(record("a", "crash", evidence='died, "badly"\nin two lines', shape={"T": 4}))
    run.append(record("b", median_s=0.25, samples=[[1]]))
    run.append(record("a", median_s=0.5, shape={"T": 4}))
    file = run.write_csv()
    assert file.name == "layer.csv"
    rows = list(csv.DictReader(file.open()))
    assert [(r["case_id"], r["status"], r["median_s"]) for r in rows] == [
        ("a", "ok", "0.5"),
        ("b", "ok", "0.25"),
    ]
    assert "samples" not in rows[0] and "shape" not in rows[0]
    chosen = list(csv.reader(run.write_csv(["case_id", "shape.T", "nothing"]).open()))
    assert chosen == [["case_id", "shape.T", "nothing"], ["a", "4", ""], ["b", "", ""]]


# --- a full disk ---


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path):
    """A real limit on the file's size: the write that hits it is cut short, as on a full disk."""
    folder = tmp_path / "r"
    code = f"""
        import resource, signal
        from pathlib import Path
        from bench import cli
        from bench.machine import facts
        from bench.records.run import Run
        facts.describe = lambda: {DESCRIPTION!r}
        def main():
            run = Run.create("layer", Path({str(folder)!r}))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
            for i in range(100):
                run.append(dict(case_id=str(i), status="ok", samples=[[0.1] * 30]))
        cli.run(main)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == FAILED
    assert "no space left" in done.stderr and "--resume" in done.stderr and "Traceback" not in done.stderr
    records, problems = read_records(folder)
    assert not problems and len(records) >= 5
    run = Run.resume(folder)  # room was made
    run.append(record("after"))
    assert len(run.records()) == len(records) + 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_no_space_at_all(tmp_path):
    run = Run.create("layer", tmp_path / "r")
    run.close()
    run._lines.handle = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(CannotGoOn, match="no space left") as caught:
        run.append(record("a"))
    assert caught.value.code == FAILED


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = files.write_atomically(tmp_path / "x.json", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotGoOn, match="no space left"):
        files.write_atomically(file, "new")
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotGoOn, match="cannot write"):
        Run.create("layer", tmp_path / "file" / "r")


# --- what may leave this machine ---

SECRETS = {
    "GITHUB_TOKEN": "plain-words-as-a-token",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENG",
    "DATABASE_PASSWORD": "correct horse battery",
    "HF_TOKEN": "hf_abcdefghijklmnop",
}


@pytest.fixture
def identity(monkeypatch):
    """A machine with names and secrets that must not get out."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("USER", "alice")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr(socket, "gethostname", lambda: "tin-roof.corp.example")
    return [*SECRETS.values(), "alice", "tin-roof", "corp.example"]


def test_nothing_about_the_owner_leaks(tmp_path, monkeypatch, identity):
    dirty = {
        **DESCRIPTION,
        "versions": {
            "torch": "2.13.0 built by alice in /home/alice/src/torch",
            "compiler": "/opt/alice tools/bin/g++ 12 on tin-roof (hf_abcdefghijklmnop)",
        },
        "gpus": [{"name": "NVIDIA H200", "driver": f"580 {SECRETS['GITHUB_TOKEN']}", "uuid": "GPU-1234"}],
        "threads": {"OMP_NUM_THREADS": "2", "torch": 2},
        "environ": dict(os.environ),
    }
    monkeypatch.setattr(facts, "describe", lambda: dirty)
    folder = tmp_path / "r"
    run = Run.create("layer", folder, ["gelu", "--kernels", "/home/alice/k", f"--seed={SECRETS['HF_TOKEN']}"])
    run.append(
        record(
            "a",
            "crash",
            evidence="File '/home/alice/x/secret_plan.py', line 3: tin-roof said correct horse battery",
            reproduce="python -m bench.layer gelu --out /mnt/tin-roof/alice/run",
            load={"path": "at /var/lib/thing", "note": ["wJalrXUtnFEMIK7MDENG"]},
        )
    )
    run.write_csv()
    for file in folder.iterdir():
        text = file.read_text()
        for word in (
            *identity,
            "GPU-1234",
            "/home",
            "/opt",
            "/mnt",
            "/var",
            str(tmp_path),
            "somewhere",
            "0123",
        ):
            assert word not in text, (file.name, word)
    environment = read_environment(folder)
    assert environment["cpu"] == {
        "model": "A CPU",
        "isa": ["avx2"],
        "usable": 2,
        "cache_bytes": {"L1d": 1},
    }
    assert environment["threads"] == {"OMP_NUM_THREADS": "2", "torch": 2}


@pytest.mark.parametrize(
    "text",
    [
        "12.3 GB/s of 24 GB/s",
        "gpt2-124m/qkv -a T=512,1024",
        "../data and kernels/cpu/gelu/simd.cpp:12:3: error",
        "1 / 2 and 3/4",
        "g++ (Debian 12.2.0-14+deb12u1) 12.2.0",
        "aten::add, aten::mul",
        "0.5 <= x <= 1.5",
    ],
)
def test_ordinary_text_stays(text, identity):
    assert scrub(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"{HOME}/kernels/cpu/x.cpp:3: error", "kernels/cpu/x.cpp:3: error"),
        (f"in {HOME}2/x.cpp", "in <path>/x.cpp"),
        ("at '/usr/include/c++/12/bits/a.h:3'", "at '<path>/a.h:3'"),
        ("-I/usr/include -L/opt/lib --out=/tmp/x", "-I<path> -L<path> --out=<path>"),
        ("https://bob:pa55word@index.example/simple", "https://<secret>@index.example/simple"),
        ("mail bob.b+c@example.org now", "mail <secret> now"),
        ("ALICE alice's malice alice@tin-roof", "ALICE <user>'s malice <user>@<host>"),
    ],
)
def test_scrubbing(text, clean, identity):
    assert scrub(text) == clean


def test_scrubbing_twice_changes_nothing_more(identity):
    once = scrub("alice at /home/alice/a.txt on tin-roof with hf_abcdefghijklmnop")
    assert scrub(once) == once


def test_a_user_named_like_our_own_words_changes_no_key_or_name(tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "cpu")
    run = Run.create("layer", tmp_path / "r")
    run.append(record("cpu", dtype="fp32", layer="gelu", evidence="cpu did it", shape={"mode": "cpu"}))
    read = run.records()[0]
    assert read["case_id"] == "cpu" and read["variant"] == "cpu.simd" and read["shape"] == {"mode": "cpu"}
    assert read["evidence"] == "<user> did it"
    assert json.loads((tmp_path / "r" / "env.json").read_text())["cpu"]["usable"] == 2


def test_a_user_named_like_a_command_can_go_on_with_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "bench")
    monkeypatch.setattr(socket, "gethostname", lambda: "layer")
    Run.create("layer", tmp_path / "r", ["gelu", "--all"]).close()
    assert json.loads((tmp_path / "r" / "env.json").read_text())["command"] == "python -m bench.layer gelu --all"


def test_a_suites_folder_is_read_as_the_runs_inside_it(tmp_path):
    for folder, kind, case in ((tmp_path, SUITE, "time-gelu"), (tmp_path / "time-gelu", "layer", "a row")):
        run = Run.create(kind, folder)
        run.append(record(case, phase="forward", dtype="fp32"))
        run.close()
    (found,) = load(tmp_path)
    assert found.kind == "layer" and [r["case_id"] for r in found.records] == ["a row"]

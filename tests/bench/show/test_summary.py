"""A suite's summary tells what is right in a part of its contract, and ranks it with nobody."""

import json
from typing import Any

import pytest

from bench import cli
from bench.records.record import Record
from bench.show.summary import TOO_LONG, Summary
from tests.bench.show.test_report import row


def test_what_is_right_in_a_part_is_told_once_and_is_never_the_fastest(tmp_path, capsys):
    lacks: dict[str, Any] = dict(proof_cases=7, proof_cases_all=9, not_supported=["grouped queries"], evidence="")
    rows = [
        row("cuda.quick", seconds=1e-6, **lacks),
        row("cuda.quick", seconds=1e-6, cache="warm", **lacks),
        row("cuda.slow", seconds=2e-3),
    ]
    (tmp_path / "time-gelu").mkdir()
    (tmp_path / "records.jsonl").write_text(json.dumps({"schema": 1, "case_id": "time-gelu", "status": "ok"}) + "\n")
    lines = "".join(json.dumps({"schema": 1, **r}) + "\n" for r in rows)
    (tmp_path / "time-gelu" / "records.jsonl").write_text(lines)
    summary = Summary.of(tmp_path)
    assert [r["variant"] for r in summary.fastest] == ["cuda.slow"] and summary.fastest[0]["variants"] == 1
    assert [r["variant"] for r in summary.partial] == ["cuda.quick"]
    assert summary.exit_code() == 0 and not summary.failed
    summary.write(tmp_path)
    summary.print()
    told = "for 7 of 9 cases; not: grouped queries"
    assert told in (tmp_path / "summary.md").read_text() and told in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["partial"] == summary.partial


@pytest.mark.parametrize(
    ("parts", "failed", "code"),
    [
        ({"time-gelu": "ok"}, [], cli.OK),
        ({"time-gelu": "timeout"}, [], cli.OK),  # what finds no room in the suite's time is no failure
        ({"time-gelu": "wrong"}, ["timeout"], cli.TIMED_OUT),
        ({"time-gelu": "wrong"}, ["timeout", "wrong"], cli.WRONG),
        ({"time-gelu": "crash"}, ["timeout"], cli.FAILED),
        ({"e2e": "wrong"}, [], cli.WRONG),
    ],
)
def test_the_gravest_that_happened_is_the_exit_code(parts, failed, code):
    why = {"wrong": TOO_LONG if failed == ["timeout"] else "a variant is wrong, or fails"}
    rows = [Record(case_id=name, status=status, evidence=why.get(status, "")) for name, status in parts.items()]
    assert Summary(rows, [], [Record(status=status) for status in failed], [], []).exit_code() == code


def test_of_a_race_that_ranks_nobody_nobody_is_the_fastest(tmp_path, capsys):
    (tmp_path / "time-gelu").mkdir()
    (tmp_path / "records.jsonl").write_text(json.dumps({"schema": 1, "case_id": "time-gelu", "status": "ok"}) + "\n")
    rows = [row("cpu.simd", noise_floor=1.21), row("cpu.naive", "backward", noise_floor=0.1)]
    (tmp_path / "time-gelu" / "records.jsonl").write_text("".join(json.dumps({"schema": 1, **r}) + "\n" for r in rows))
    summary = Summary.of(tmp_path)
    assert [r["variant"] for r in summary.fastest] == ["cpu.naive"]
    summary.print()
    assert "races that rank nobody, with a noise floor above ±50%: 1" in capsys.readouterr().out

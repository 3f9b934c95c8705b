"""What a gate fails on: lost work, the same run twice, history, thresholds by layer, and what could be seen."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench import compare as command
from bench.cli import CannotGoOn
from bench.core import stats
from bench.records.gate import Thresholds, read_thresholds
from bench.records.queries import case_of
from bench.records.read import RECORDS, Loaded
from bench.records.verdicts import FASTER, SLOWER, compare, side
from bench.show import comparison
from tests.compare_runs import ENVIRONMENT, Noise, failure, layer_record, layer_records, write_run

QUIET = Noise(process=0.001, round_=0.001, sample=0.002)


def run(*argv):
    return command.main([str(a) for a in argv])


@pytest.fixture
def runs(tmp_path):
    return lambda name, records, *rest, **more: write_run(tmp_path / name, records, *rest, **more)


@pytest.fixture
def drawn():
    """Records of a run, other numbers each time."""
    random = np.random.default_rng(5)
    return lambda **more: layer_records(random, QUIET, 2, **more)


def skipped(record):
    return failure(record["variant"], "skipped", shape_name=record["shape_name"])


# --- lost work ---


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (lambda r: None, "not there"),
        (skipped, "skipped: poison survived"),
        (lambda r: {**failure(r["variant"], "ok", shape_name=r["shape_name"]), "cache": "warm"}, "not timed any more"),
        (
            lambda r: {**r, "not_supported": ["causal"], "proof_cases": 7, "proof_cases_all": 9},
            "does not cover any more: causal",
        ),
    ],
)
def test_work_that_is_lost_fails_any_and_missing(runs, drawn, capsys, how, why):
    before, after = drawn(), drawn()
    fewer = [how(r) if r["variant"] == "cpu.simd" else r for r in after]
    one, other = runs("a", before), runs("b", [r for r in fewer if r])
    assert run(one, other, "--fail-on", "any", "--json") == 4 == run(one, other, "--fail-on", "missing")
    assert run(one, other, "--fail-on", "slower,wrong") == 0
    first = capsys.readouterr().out.split('{"before"')[0]
    assert "FAIL: 1 missing" in first and "LOST (1): gelu forward model/0 fp32 warm cpu.simd: " + why in " ".join(
        first.split()
    )


def test_a_slow_call_that_is_timed_warm_in_one_run_alone_is_not_lost_work(runs, drawn):
    def cold(r, **more):
        return {**r, "cache": "cold", "case_id": f"{r['case_id']}-cold", **more}

    def slow(r):
        return r["variant"] == "cpu.simd"

    before, after = drawn(), drawn()
    one = runs("a", [*before, *(cold(r) for r in before)])
    told = [cold(r, cold_only_s=0.21) if slow(r) else cold(r) for r in after]
    fewer = [r for r in after if not slow(r)]
    assert run(one, runs("said", [*fewer, *told]), "--fail-on", "any") == 0
    assert run(one, runs("gone", [*fewer, *map(cold, after)]), "--fail-on", "any") == 4
    assert run(one, runs("cold gone", [*after, *(r for r in told if not slow(r))]), "--fail-on", "any") == 4


def test_a_run_cut_short_and_a_damaged_line_are_lost_work(runs, drawn):
    before, whole = runs("a", drawn(races=3)), drawn(races=3)
    assert run(before, runs("whole", whole), "--fail-on", "any") == 0
    assert run(before, runs("short", whole[:-4]), "--fail-on", "any") == 4
    damaged = runs("damaged", whole)
    with (damaged / RECORDS).open("a") as file:
        file.write('{"schema": 1, "case')
    assert (
        run(before, damaged, "--fail-on", "any") == 4 == run(damaged, runs("again", drawn(races=3)), "--fail-on", "any")
    )
    # A folder of runs one of which recorded nothing that can be read.
    both = shutil.copytree(before, before.parent / "both" / "one").parent
    empty = runs("both/two", [])
    (empty / RECORDS).write_text("rubbish\n")
    assert run(before.parent / "whole", both, "--fail-on", "any") == 4


def test_what_was_never_right_or_became_wrong_is_not_called_lost(runs, drawn):
    records = drawn()
    wrong = [r for r in records if r["variant"] != "cpu.simd"] + [failure("cpu.simd", shape_name="model/0")]
    gone = [r for r in drawn() if r["variant"] != "cpu.simd"]
    assert run(runs("wrong", wrong), runs("gone", gone), "--fail-on", "any") == 0
    assert run(runs("right", drawn()), runs("wrong-now", wrong), "--fail-on", "missing") == 0
    assert run(runs("right-2", drawn()), runs("wrong-2", wrong), "--fail-on", "any") == 2


def test_unclear_fails_only_where_it_is_asked_for(runs):
    random = np.random.default_rng(1)
    unsteady = Noise(process=0.05)
    one, other = (runs(name, layer_records(random, unsteady, 2)) for name in "ab")
    assert run(one, other, "--fail-on", "any") == 0
    assert run(one, other, "--fail-on", "any,unclear") == 5 == run(one, other, "--fail-on", "unclear")


@pytest.mark.parametrize("text", ["fast", "slower,", "slow"])
def test_what_it_cannot_fail_on(text, capsys):
    with pytest.raises(SystemExit) as caught:
        command.parser().parse_args(["a", "b", "--fail-on", text])
    assert caught.value.code == 64 and "is none of slower, wrong, missing, unclear, any" in capsys.readouterr().err


# --- the same run ---


def test_the_same_run_twice_is_said_to_be_and_no_gate_lets_it_through(runs, drawn, tmp_path, capsys):
    one = runs("a", drawn())
    copied = shutil.copytree(one, tmp_path / "copy" / "of" / "a")
    for other in (one, copied, tmp_path / "copy"):
        assert run(one, other, "--fail-on", "any") == 3
        assert "hold the same run" in capsys.readouterr().err
        assert run(one, other, "--json") == 0
        *told, document = capsys.readouterr().out.splitlines()
        assert any("hold the same run" in line for line in told) and json.loads(document)["same_run"]
        assert not any("would pass" in line for line in told) and any("would not judge" in line for line in told)
    assert run(one, runs("b", drawn()), "--fail-on", "any") == 0


# --- what could be seen ---


def test_the_smallest_change_that_could_be_seen_is_about_where_changes_begin_to_be_seen(runs, capsys):
    """Ten times as large it is called SLOWER, a third of it is not."""
    noisy = Noise(process=0.01, round_=0.005)
    random = np.random.default_rng(2)
    one, other = (runs(name, layer_records(random, noisy, 4)) for name in "ab")
    run(one, other, "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    smallest = next(c["smallest"] for c in told["cases"] if c["variant"] == "cpu.simd")
    assert told["smallest"] == [
        {"layer": "gelu", "phase": "forward", "least": min(c["smallest"] for c in told["cases"]), "blind": 0}
        | {"most": max(c["smallest"] for c in told["cases"])}
    ]
    verdicts = {}
    for factor in (1 / 3, 10):
        random = np.random.default_rng(2)
        changed = (
            layer_records(random, noisy, 4),
            layer_records(random, noisy, 4, slower={"cpu.simd": factor * smallest}),
        )
        run(*(runs(f"{name}{factor}", records) for name, records in zip("cd", changed, strict=True)), "--json")
        cases = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
        verdicts[factor] = next(c["verdict"] for c in cases if c["variant"] == "cpu.simd")
    assert verdicts[10] == SLOWER and verdicts[1 / 3] not in (SLOWER, FASTER)


def test_where_nothing_would_have_been_seen_it_says_so(runs, drawn, capsys):
    busy = {
        "machine": {"cores": 2, "load": 9.0, "mhz": 2000.0, "throttled": 0, "others": 0.9, "stolen": 0.0, "gpus": []}
    }
    run(runs("a", drawn()), runs("b", drawn(**busy)))
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "forward" in line][-1] == "nothing"


def test_a_long_table_leaves_out_what_is_the_same_and_says_so(runs, drawn, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "ROWS", 3)
    run(runs("a", drawn(races=2)), runs("b", drawn(races=2, slower={"cpu.simd": 0.3})))
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if "fp32 warm" in line]
    assert sum("SLOWER" in row for row in rows) == 2 and sum("SAME" in row for row in rows) == 1
    assert "5 of the cases that are the same are not listed" in told


# --- history ---


def history(runs, number, noise=QUIET, seed=3, **more):
    """Runs of one machine, each an hour after the other."""
    random = np.random.default_rng(seed)
    for i in range(number):
        folder = runs(f"history/{i}", layer_records(random, noise, 2, rounds=5, **more))
        start(folder, f"2026-01-01T{i:02}:00:00Z")
    return folder.parent


def start(folder, when):
    file = folder / "env.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"started": when}))
    return folder


def test_one_new_run_against_the_last_ones_of_its_machine(runs, drawn, capsys):
    past = history(runs, 4)
    other_machine = {**ENVIRONMENT, "cpu": {**ENVIRONMENT["cpu"], "model": "Another CPU"}}
    start(runs("history/other", drawn(slower={"cpu.simd": 3.0}), other_machine), "2026-01-01T09:00:00Z")
    start(runs("history/later", drawn(slower={"cpu.simd": 3.0})), "2027-01-01T09:00:00Z")
    start(runs("history/softmax", drawn(layer="softmax")), "2026-01-01T10:00:00Z")
    slow = start(runs("slow", drawn(slower={"cpu.simd": 0.2}, rounds=5)), "2026-06-01T00:00:00Z")
    assert run(slow, "--against-history", 3, "--history", past, "--fail-on", "slower", "--json") == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["folder"].rpartition("/")[2] for run in told["before"]] == ["1", "2", "3"]
    same = start(runs("same", drawn(rounds=5)), "2026-06-01T00:00:00Z")
    assert run(same, "--against-history", 8, "--history", past, "--fail-on", "any") == 0
    # The new run may be among them already.
    shutil.copytree(slow, past / "committed")
    assert run(slow, "--against-history", 3, "--history", past, "--fail-on", "slower") == 1


def test_history_that_says_nothing(runs, drawn):
    after = start(runs("after", drawn()), "2025-01-01T00:00:00Z")
    with pytest.raises(CannotGoOn, match=r"no run in .* was measured before") as caught:
        run(after, "--against-history", 3, "--history", history(runs, 2))
    assert caught.value.code == 3
    for arguments in ([after], [after, after, "--against-history", 3]):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 64


@pytest.mark.parametrize(
    ("streams", "most"),
    [pytest.param(1, 0, id="20 comparisons"), pytest.param(25, 5, id="500 comparisons", marks=pytest.mark.slow)],
)
def test_history_raises_a_false_alarm_in_one_of_a_hundred_comparisons_at_most(monkeypatch, streams, most):
    """Runs of the same code, of twelve cases each, on a machine whose hours, variants and processes differ, each beside
    the eight before it."""
    monkeypatch.setattr(stats, "RESAMPLES", 100)
    hours = Noise(process=0.02, round_=0.02, sample=0.02, drift=0.05, spell=0.03)
    alarms = 0
    for seed in range(streams):
        random = np.random.default_rng(seed)
        drawn = [Loaded(Path(f"{i}"), "layer", {}, layer_records(random, hours, 2, 3, rounds=5)) for i in range(28)]
        for i in range(8, 28):
            found = compare(side(drawn[i - 8 : i]), side([drawn[i]]), Thresholds(0.02))
            alarms += any(c.verdict in (SLOWER, FASTER) for c in found.changes)
    assert alarms <= most


# --- thresholds ---


def case(layer="gelu", phase="forward"):
    return case_of(layer_record("cpu.simd", [[1.0]], [0]))._replace(layer=layer, phase=phase)


def test_thresholds_by_layer_and_pass(tmp_path, monkeypatch, runs, drawn):
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.layerbench.thresholds]\ndefault = "3%"\ngelu = 0.3\n"gelu backward" = "1%"\n')
    known = ("gelu", "softmax", "gpt2-124m")
    limits = read_thresholds(file, 0.02, known)
    assert [limits.of(case(*c)) for c in ((), ("gelu", "backward"), ("softmax",))] == [0.3, 0.01, 0.03]
    one, slow = runs("a", drawn()), runs("b", drawn(slower={"cpu.simd": 0.2}))
    assert run(one, slow, "--fail-on", "slower") == 1
    assert run(one, slow, "--fail-on", "slower", "--thresholds", file) == 0
    monkeypatch.chdir(tmp_path)
    assert run(one, slow, "--fail-on", "slower") == 0
    assert run(one, slow, "--fail-on", "slower", "--threshold", "2%") == 1
    file.write_text("[tool.other]\nx = 1\n")
    assert run(one, slow, "--fail-on", "slower") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('gleu = "2%"', "'gleu', which is no layer; did you mean 'gelu'"),
        ('"gelu sideways" = "2%"', "'gelu sideways', which is no layer"),
        ("gelu = 2", "gelu: '2' is no share"),
        ("gelu = ", "cannot read"),
    ],
)
def test_thresholds_that_make_no_sense(tmp_path, text, says):
    file = tmp_path / "some.toml"
    file.write_text(f"[tool.layerbench.thresholds]\n{text}\n")
    with pytest.raises(CannotGoOn) as caught:
        read_thresholds(file, 0.02, ("gelu",))
    assert says in str(caught.value) and caught.value.code == 64
    with pytest.raises(CannotGoOn, match="no such file"):
        read_thresholds(tmp_path / "nowhere.toml", 0.02, ())

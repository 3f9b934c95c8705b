"""Verdicts between two runs: no false alarm, real changes found, and every reason not to believe a difference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import compare as command
from bench.cli import CannotGoOn
from bench.core import stats
from bench.records.gate import Thresholds
from bench.records.read import RECORDS, Loaded
from bench.records.record import Record
from bench.records.verdicts import compare, side
from tests.compare_runs import (
    CALM,
    ENVIRONMENT,
    Noise,
    failure,
    layer_record,
    layer_records,
    step_records,
    write_run,
)

QUIET = Noise(process=0.001, round_=0.001, sample=0.002)


def random(seed=1):
    return np.random.default_rng(seed)


def judged(before, after, threshold=0.02, **options):
    """(variant -> change, comparison) of two lists of records."""
    old, new = (side([Loaded(Path(name), "layer", {}, rows)]) for name, rows in (("a", before), ("b", after)))
    comparison = compare(old, new, Thresholds(threshold), **options)
    return {c.case.variant: c for c in comparison.changes}, comparison


def run(*argv):
    return command.main([str(a) for a in argv])


@pytest.fixture
def runs(tmp_path):
    """Makes a run's folder from records: runs("before", records)."""
    return lambda name, records, *rest, **more: write_run(tmp_path / name, records, *rest, **more)


# --- what is said of a change ---


def test_a_slower_and_a_faster_kernel_are_found_and_the_others_are_the_same():
    records = random()
    changes, _ = judged(
        layer_records(records, QUIET, 2), layer_records(records, QUIET, 2, slower={"cpu.simd": 0.1, "cpu.naive": -0.2})
    )
    verdicts = {name: c.verdict for name, c in changes.items()}
    assert verdicts == {"torch.eager": "SAME", "torch.compile": "SAME", "cpu.simd": "SLOWER", "cpu.naive": "FASTER"}
    simd = changes["cpu.simd"]
    assert simd.low < 1.1 < simd.high and simd.ratio == pytest.approx(1.1, abs=0.02)
    assert simd.source_changed and not changes["torch.eager"].source_changed


def test_a_case_is_what_it_is_not_its_id():
    before = layer_records(random(1), QUIET)
    after = [{**r, "case_id": "another " + r["case_id"]} for r in layer_records(random(2), QUIET)]
    assert len(judged(before, after)[0]) == 4
    for name, value in (("shape", {"B": 8, "T": 1024}), ("threads", 1), ("device", "cuda"), ("cache", "cold")):
        changes, comparison = judged(before, [{**r, name: value} for r in after])
        assert not changes and len(comparison.only_before) == len(comparison.only_after) == 4, name


def test_below_the_noise_floor_nothing_is_said():
    before = layer_records(random(1), QUIET, 3)
    after = layer_records(random(2), QUIET, 3, slower={"cpu.simd": 0.1})
    assert judged(before, after)[0]["cpu.simd"].verdict == "SLOWER"
    for one in (before, after):
        other = [{**r, "noise_floor": 0.2} for r in one]
        changes, _ = judged(*((other, after) if one is before else (before, other)))
        assert changes["cpu.simd"].verdict == "UNCLEAR"
        assert "noise floor ±20%" in changes["cpu.simd"].reason


def test_processes_that_differ_make_a_change_unclear_however_many_samples_they_have():
    unsteady = Noise(process=0.04, round_=0.0005, sample=0.0005)
    before, after = layer_records(random(1), unsteady, 2, rounds=40), layer_records(random(2), unsteady, 2, rounds=40)
    for r in before + after:
        r["noise_floor"] = 0.0
    changes, _ = judged(before, after)
    assert {c.verdict for c in changes.values()} == {"UNCLEAR"}
    assert max(c.size for c in changes.values()) > 0.03  # which a bootstrap over samples would have believed


def test_rounds_that_scatter_leave_a_change_unclear_though_the_control_is_still():
    def records(times):
        still = [layer_record("torch.eager", [[1e-3]] * 6, [0] * 6, noise_floor=0.0) for _ in range(2)]
        scattered = layer_record("cpu.simd", [[t * 1e-3] for t in times], [0] * 6, noise_floor=0.0)
        return [*still[:1], {**still[1], "control": True, "case_id": "again"}, scattered]

    change = judged(records([0.7, 0.8, 1.0, 1.0, 1.3, 1.5]), records([0.8, 0.9, 1.1, 1.1, 1.4, 1.6]))[0]["cpu.simd"]
    assert change.reach == 0 and (change.verdict, change.reason) == ("UNCLEAR", "the interval holds 1")


def test_what_two_entries_of_the_control_differ_by_is_what_two_runs_may_differ_by():
    def records(simd, again):
        times = {"torch.eager": 1.0, "again": again, "cpu.simd": simd}
        made = [
            layer_record(n.replace("again", "torch.eager"), [[ms]] * 6, [0] * 6, noise_floor=0)
            for n, ms in times.items()
        ]
        return [made[0], {**made[1], "control": True}, made[2]]

    assert judged(records(1.0, 1.0), records(1.08, 1.0))[0]["cpu.simd"].verdict == "SLOWER"
    change = judged(records(1.0, 1.1), records(1.08, 1.1))[0]["cpu.simd"]
    assert change.verdict == "UNCLEAR" and change.low < 1 < change.high


def test_what_moved_the_unchanged_variants_too_is_no_change_of_the_kernel():
    before = layer_records(random(1), QUIET, 2)
    after = layer_records(random(2), QUIET, 2, slower={"cpu.simd": 0.001})
    slow_machine = [{**r, "samples": (1.06 * np.array(r["samples"])).tolist()} for r in after]
    change = judged(before, slow_machine)[0]["cpu.simd"]
    assert change.verdict == "UNCLEAR" and "unchanged variants moved +6" in change.reason
    # On a slow machine a kernel that took as long as before got faster, and is not simply the same.
    quicker = layer_records(random(2), QUIET, 2, slower={"cpu.simd": -0.057})
    quicker = [{**r, "samples": (1.06 * np.array(r["samples"])).tolist()} for r in quicker]
    change = judged(before, quicker)[0]["cpu.simd"]
    assert change.verdict == "UNCLEAR" and "moved +6" in change.reason
    # Across machines the others are no control.
    assert judged(before, slow_machine, same_machine=False)[0]["cpu.simd"].verdict == "SLOWER"


def test_a_single_round_says_nothing():
    before, after = layer_records(random(1), QUIET, rounds=1), layer_records(random(2), QUIET, rounds=1)
    changes, _ = judged(before, [{**r, "samples": [[3e-3]]} for r in after])
    assert {(c.verdict, c.reason) for c in changes.values()} == {("UNCLEAR", "a single round")}


def test_one_process_without_a_control_says_nothing():
    one = [layer_record("cpu.simd", [[1e-3], [1.001e-3], [1e-3]], [0, 0, 0])]
    other = [layer_record("cpu.simd", [[2e-3], [2.001e-3], [2e-3]], [0, 0, 0])]
    change = judged(one, other)[0]["cpu.simd"]
    assert change.verdict == "UNCLEAR" and "no control" in change.reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"machine": {**CALM, "mhz": 2080.0}}, "clock at 2000 MHz before, 2080 MHz after"),
        ({"machine": {**CALM, "others": 0.4}}, "after: other programs use 40% of 2 cores"),
        ({"throttled": "power cap"}, "throttled: not before, power cap after"),
    ],
)
def test_other_conditions_make_it_unclear(fields, reason):
    before, after = layer_records(random(1), QUIET, 2), layer_records(random(2), QUIET, 2, slower={"cpu.simd": 0.3})
    change = judged(before, [{**r, **fields} for r in after])[0]["cpu.simd"]
    assert change.verdict == "UNCLEAR" and reason in change.reason


def test_a_state_that_says_little_disturbs_nothing():
    before, after = layer_records(random(1), QUIET, 2), layer_records(random(2), QUIET, 2)
    for state in ({"others": 0.4}, {"others": 0.4, "stolen": 0.1, "cores": None, "load": 1.0}, {"mhz": 2000.0}):
        assert judged(before, [{**r, "machine": state} for r in after])[0]["cpu.simd"].verdict == "SAME"


def test_a_clock_that_differs_little_is_the_same_and_a_gpu_has_its_own():
    before, after = layer_records(random(1), QUIET, 2), layer_records(random(2), QUIET, 2)
    near = [{**r, "machine": {**CALM, "mhz": 2050.0}} for r in after]
    assert judged(before, near)[0]["cpu.simd"].verdict == "SAME"
    gpu = [[{**r, "device": "cuda", "sm_mhz": mhz} for r in rows] for rows, mhz in ((before, 1980), (after, 1410))]
    assert "1980 MHz before, 1410 MHz after" in judged(*gpu)[0]["cpu.simd"].reason
    busy_host = [
        [{**r, "device": "cuda", "machine": {**CALM, "others": 0.4}} for r in rows] for rows in (before, after)
    ]
    assert judged(*busy_host)[0]["cpu.simd"].verdict == "SAME"
    # Both at the power cap, as a large matmul is: that is how it runs.
    capped = [[{**r, "throttled": "power cap"} for r in rows] for rows in (before, after)]
    assert judged(*capped)[0]["cpu.simd"].verdict == "SAME"


def test_other_timers_are_not_compared():
    before, after = layer_records(random(1), QUIET), layer_records(random(2), QUIET, timer="busy")
    changes, _ = judged(before, after)
    assert {c.verdict for c in changes.values()} == {"NOT COMPARED"}
    assert changes["cpu.simd"].reason == "timer perf_counter before, busy after"


# --- right and wrong ---


def test_a_changed_source_that_lacks_more_than_before_is_no_faster_kernel():
    before = layer_records(random())
    part = dict(proof_cases=7, proof_cases_all=9, not_supported=["grouped queries"])
    after = [r | part if r["variant"] == "cpu.simd" else r for r in layer_records(random(2), slower={"cpu.simd": -0.3})]
    change = judged(before, after)[0]["cpu.simd"]
    assert (change.verdict, change.ratio) == ("NOT COMPARED", None)
    assert change.reason == "covers all cases before, 7 of 9 cases (not: grouped queries) after"
    # The same source, of which the proof asks for more by now.
    same = [r | part if r["variant"] == "cpu.simd" else r for r in layer_records(random(2))]
    assert judged(before, same)[0]["cpu.simd"].verdict != "NOT COMPARED"


def test_what_became_wrong_or_right_again_is_said_with_its_evidence():
    right = layer_records(random(), QUIET)
    without = [r for r in right if r["variant"] != "cpu.simd"]
    failed = [*without, failure("cpu.simd", "crash", shape_name="model/0")]
    changes, comparison = judged(right, failed)
    assert (changes["cpu.simd"].verdict, changes["cpu.simd"].reason) == ("WRONG", "crash: poison survived")
    assert [c.variant for c in comparison.newly_wrong] == ["cpu.simd"] and not comparison.only_before
    changes, comparison = judged(failed, right)
    assert (changes["cpu.simd"].verdict, changes["cpu.simd"].reason) == ("FIXED", "crash before: poison survived")
    assert not comparison.newly_wrong and not comparison.only_after
    _, comparison = judged(failed, failed)
    assert [c.variant for c in comparison.still_wrong] == ["cpu.simd"] and not comparison.newly_wrong


def test_times_of_a_wrong_kernel_are_not_compared():
    right = layer_records(random(1), QUIET)
    wrong = [{**r, "status": "wrong"} if r["variant"] == "cpu.simd" else r for r in layer_records(random(2), QUIET)]
    change = judged(right, wrong)[0]["cpu.simd"]
    assert change.verdict == "WRONG" and change.ratio is None


def test_a_new_case_that_is_wrong_is_newly_wrong_and_a_skipped_one_is_no_case():
    right = layer_records(random(), QUIET)
    _, comparison = judged(right, [*right, failure("cpu.new"), failure("cuda.warp", "skipped")])
    assert [c.variant for c in comparison.newly_wrong] == ["cpu.new"]
    assert [c.variant for c in comparison.only_after] == ["cpu.new"]


def test_the_newest_source_in_a_run_counts():
    old = layer_record("cpu.simd", [[2e-3]] * 3, [0] * 3, utc="2026-01-01T00:00:00.000Z", source_hash="old")
    crashed = failure("cpu.simd", "crash", utc="2026-01-01T00:00:01.000Z", source_hash="older")
    new = layer_record("cpu.simd", [[1e-3]] * 3, [0] * 3, utc="2026-01-02T00:00:00.000Z", source_hash="new")
    entries = side([Loaded(Path("a"), "layer", {}, [old, crashed, new])]).entries
    assert [e.record["source_hash"] for e in entries.values()] == ["new"]


# --- several runs a side ---


def test_runs_in_a_folder_are_pooled_and_narrow_what_is_unclear(tmp_path, capsys):
    unsteady = Noise(process=0.012, round_=0.001, sample=0.001)
    numbers = random(4)
    for n in range(6):
        write_run(tmp_path / f"before/{n}", layer_records(numbers, unsteady))
        write_run(tmp_path / f"after/{n}", layer_records(numbers, unsteady, slower={"cpu.simd": 0.07}))
    run(tmp_path / "before/0", tmp_path / "after/0")
    assert "SLOWER" not in capsys.readouterr().out
    run(tmp_path / "before", tmp_path / "after")
    assert "1 SLOWER" in capsys.readouterr().out


def test_runs_of_another_source_or_machine_are_not_pooled():
    records = layer_records(random(), QUIET, utc="2026-01-02T00:00:00.000Z")
    older = [r | Record(source_hash="old", utc="2026-01-01T00:00:00.000Z") for r in records]
    runs = [Loaded(Path("a"), "layer", {}, records), Loaded(Path("b"), "layer", {}, older)]
    assert {len(e.processes) for e in side(runs).entries.values()} == {1}
    runs[1].records = records
    assert {len(e.processes) for e in side(runs).entries.values()} == {2}
    assert {len(e.processes) for e in side(runs, lambda a, b: a is b).entries.values()} == {1}


# --- false alarms and what is found, counted ---

NOISES = {
    "quiet": (Noise(), 1),
    "rounds 5%": (Noise(process=0.003, round_=0.05, sample=0.02), 1),
    "processes 1%": (Noise(process=0.01, round_=0.005), 2),
    "processes 3%": (Noise(process=0.03, round_=0.01), 1),
    "the machine drifts 5%": (Noise(drift=0.05), 2),
    "processes of two speeds": (Noise(process_modes=0.08), 2),
    "rounds of two speeds": (Noise(round_modes=0.08), 1),
}


@pytest.fixture
def quick_bootstrap(monkeypatch):
    monkeypatch.setattr(stats, "RESAMPLES", 250)


@pytest.mark.parametrize("name", NOISES)
def test_no_false_alarm_in_twenty_comparisons_of_the_same_code(name, quick_bootstrap):
    noise, processes = NOISES[name]
    numbers, alarms = random(11), []
    for _ in range(20):
        pair = [layer_records(numbers, noise, processes, races=4) for _ in range(2)]
        alarms += [c for c in judged(*pair)[1].changes if c.verdict in ("FASTER", "SLOWER")]
    assert alarms == []


def pooled(numbers, noise, runs, slower=None):
    """The comparison of several runs a side, of two processes each."""
    sides = []
    for what in (None, slower):
        made = [layer_records(numbers, noise, 2, races=4, slower=what) for _ in range(runs)]
        sides.append(side([Loaded(Path(f"{n}"), "layer", {}, records) for n, records in enumerate(made)]))
    return compare(sides[0], sides[1], Thresholds(0.02))


def test_spells_that_no_run_can_see_in_itself_are_seen_by_several(quick_bootstrap):
    """Each run is as steady as can be, and another run of the same code is elsewhere."""
    numbers = random(14)
    found = [c.verdict for _ in range(20) for c in pooled(numbers, Noise(spell=0.03), 4).changes]
    assert not {"FASTER", "SLOWER"} & set(found)


@pytest.mark.parametrize(
    ("noise", "runs", "least"), [(Noise(), 1, 20), (Noise(process=0.01), 6, 14), (Noise(spell=0.02), 12, 10)]
)
def test_five_percent_is_found_where_the_noise_allows(noise, runs, least, quick_bootstrap):
    numbers, found = random(12), 0
    for _ in range(5):
        changes = pooled(numbers, noise, runs, {"cpu.simd": 0.05}).changes
        found += sum(c.verdict == "SLOWER" for c in changes if c.case.variant == "cpu.simd")
        assert not [c for c in changes if c.verdict in ("FASTER", "SLOWER") and c.case.variant != "cpu.simd"]
    assert found >= least  # of 20


def test_the_interval_of_the_ratio_covers_the_truth(quick_bootstrap):
    noise = Noise(process=0.02, round_=0.01)
    numbers, hits = random(13), 0
    for _ in range(100):
        pair = layer_records(numbers, noise, 2), layer_records(numbers, noise, 2, slower={"cpu.simd": 0.1})
        change = judged(*pair)[0]["cpu.simd"]
        hits += change.low <= 1.1 <= change.high
    assert hits >= 90


# --- training steps ---


def test_a_slower_training_step_is_found_with_its_mfu(runs, capsys):
    before = runs("a", step_records(random(1)), kind="e2e")
    after = runs("b", step_records(random(2), slower=0.3), kind="e2e")
    assert run(before, after, "--fail-on", "slower") == 1
    page = capsys.readouterr().out
    ours = next(line for line in page.splitlines() if " ours " in line)
    assert "SLOWER" in ours and "40% → 31%" in ours
    assert "1 SLOWER, 2 SAME" in page or "1 SLOWER, 1 SAME" in page


def test_other_kernels_in_the_step_are_named(runs, capsys):
    after = step_records(random(2))
    after[0]["kernels"] = {"attention forward": "torch.sdpa_flash"}
    run(runs("a", step_records(random(1))), runs("b", after))
    told = " ".join(capsys.readouterr().out.split())
    assert "other kernels:" in told and "cpu.flash → torch.sdpa_flash".replace(" ", "") in told.replace(" ", "")


# --- the command ---


def test_the_page_has_every_layer_biggest_change_first_and_geometric_means(runs, capsys):
    numbers = random()

    def both(gelu=None, residual=None):
        records = layer_records(numbers, QUIET, slower=residual, layer="residual")
        return records + layer_records(numbers, QUIET, slower=gelu)

    before = runs("a", both())
    after = runs("b", both(gelu={"cpu.simd": 0.1, "cpu.naive": 0.5}, residual={"cpu.simd": -0.3}))
    assert run(before, after) == 0
    page = capsys.readouterr().out
    assert all(len(line) <= 160 for line in page.splitlines())
    layers, means = page.split("geometric mean")
    changed = [line for line in layers.splitlines() if "source changed" in line]
    assert changed[0].startswith("gelu ") and changed[2].startswith("residual ")
    assert ["cpu.naive" in line for line in changed] == [True, False, False]
    gelu = next(line for line in means.splitlines() if line.startswith("gelu "))
    # (1.1 * 1.5) ** (1 / 4), 2 slower, 2 the same
    assert gelu.split()[:-1] == ["gelu", "forward", "4", "+13%", "2", "2"]


@pytest.mark.parametrize(
    ("fail_on", "slower", "wrong"), [(None, 0, 0), ("slower", 1, 0), ("wrong", 0, 2), ("any", 1, 2)]
)
def test_exit_codes(runs, fail_on, slower, wrong):
    option = ["--fail-on", fail_on] if fail_on else []
    before = runs("a", layer_records(random(1), QUIET, 2))
    same = runs("same", layer_records(random(2), QUIET, 2))
    slow = layer_records(random(2), QUIET, 2, slower={"cpu.simd": 0.2})
    broken = [r for r in slow if r["variant"] != "cpu.naive"] + [failure("cpu.naive", shape_name="model/0")]
    assert run(before, same, *option) == 0
    assert run(before, runs("slow", slow), *option) == slower
    assert run(before, runs("wrong", broken), *option) == (wrong or slower)


def test_json_is_the_last_line_and_complete(runs, capsys):
    before = layer_records(random(1), QUIET, 2)
    after = layer_records(random(2), QUIET, 2, slower={"cpu.simd": 0.2})
    after = [r for r in after if r["variant"] != "cpu.naive"]
    assert run(runs("a", before), runs("b", after), "--json", "--fail-on", "any") == 4
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["exit_code"] == 4 and document["verdicts"] == {"SLOWER": 1, "SAME": 2}
    first = document["cases"][0]
    assert (first["variant"], first["verdict"], first["source_changed"]) == ("cpu.simd", "SLOWER", True)
    assert first["sizes"] == {"B": "4", "T": "1024"} and first["low"] < first["ratio"] < first["high"]
    assert [c["variant"] for c in document["only_before"]] == ["cpu.naive"]
    assert [(c["variant"], c["why"]) for c in document["lost"]] == [("cpu.naive", "not there")]
    assert document["found"] == {"slower": 1, "wrong": 0, "missing": 1, "unclear": 0}
    assert 0.02 <= document["smallest"][0]["least"] <= document["smallest"][0]["most"] < 0.1
    assert document["across_environments"] is False and document["geometric_means"][0]["cases"] == 3


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"cpu": {**ENVIRONMENT["cpu"], "model": "Another CPU"}}, "cpu.model"),
        ({"gpus": [{**ENVIRONMENT["gpus"][0], "driver": "590.2"}]}, "gpu 0 driver"),
        ({"gpus": [{**ENVIRONMENT["gpus"][0], "power_cap_w": 500.0}]}, "gpu 0 power_cap_w"),
        ({"gpus": []}, "gpus"),
        ({"versions": {**ENVIRONMENT["versions"], "torch": "2.12.0"}}, "versions.torch"),
        ({"threads": {"torch": 1}}, "threads.torch"),
        ({"settings": ["ATEN_CPU_CAPABILITY=default"]}, "settings"),
    ],
)
def test_other_conditions_are_refused_unless_asked_for_and_then_marked(runs, capsys, change, key):
    before = runs("a", layer_records(random(1), QUIET))
    after = runs("b", layer_records(random(2), QUIET), {**ENVIRONMENT, **change})
    with pytest.raises(CannotGoOn, match=key) as caught:
        run(before, after)
    assert caught.value.code == 3
    run(before, after, "--cross-env", "--json")
    *page, last = capsys.readouterr().out.splitlines()
    titles = [line for line in page if "layers, after" in line or "geometric mean" in line]
    assert len(titles) == 2 and all(title.startswith("ACROSS ENVIRONMENTS: ") for title in titles)
    assert [line for line in page if line.startswith(f"DIFFERS {key}: ")]
    document = json.loads(last)
    assert document["across_environments"] is True and key in document["differing"]


def test_another_clock_is_refused_unless_asked_for_and_then_marked(runs, capsys):
    sides = runs("a", layer_records(random(1), QUIET)), runs("b", layer_records(random(2), QUIET, timer="busy"))
    with pytest.raises(CannotGoOn, match="timer: perf_counter before, busy after") as caught:
        run(*sides)
    assert caught.value.code == 3
    run(*sides, "--cross-env")
    told = " ".join(capsys.readouterr().out.split())
    assert "DIFFERS timer: perf_counter → busy" in told and "ACROSS ENVIRONMENTS: layers" in told and "SAME" in told


def test_another_version_of_something_else_is_only_noted(runs, capsys):
    versions = {**ENVIRONMENT["versions"], "triton": "3.7.0"}
    after = runs("b", layer_records(random(2), QUIET), {**ENVIRONMENT, "versions": versions})
    assert run(runs("a", layer_records(random(1), QUIET)), after) == 0
    assert "triton: 3.6.0 → 3.7.0" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.02", 0.02), ("12.5%", 0.125)])
def test_thresholds(text, value):
    assert command.share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["2", "two", "-1%", "0", "nan", "100%"])
def test_a_threshold_that_makes_no_sense(text, capsys):
    with pytest.raises(SystemExit) as caught:
        command.parser().parse_args(["a", "b", f"--threshold={text}"])
    assert caught.value.code == 64 and "is no share" in capsys.readouterr().err


# --- damaged and empty runs ---


def refused(*argv):
    with pytest.raises(CannotGoOn) as caught:
        run(*argv)
    assert caught.value.code == 3
    return str(caught.value)


def test_missing_and_empty_folders(runs, tmp_path):
    good = runs("good", layer_records(random(), QUIET))
    assert "no such folder" in refused(good, tmp_path / "nowhere")
    (tmp_path / "nothing").mkdir()
    assert "no run in" in refused(good, tmp_path / "nothing")
    assert "recorded nothing" in refused(good, runs("empty", []))


def test_another_schema(runs):
    good, other = runs("good", layer_records(random(), QUIET)), runs("other", layer_records(random(), QUIET))
    file = other / RECORDS
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 7'))
    assert "schema 7, this program reads 1" in refused(good, other)


def test_a_damaged_environment(runs):
    good, other = runs("good", layer_records(random(), QUIET)), runs("other", layer_records(random(), QUIET))
    (other / "env.json").write_text("{")
    assert "env.json is damaged" in refused(good, other)
    (other / "env.json").unlink()
    assert "env.json: there before, missing after" in refused(good, other)
    assert run(good, other, "--cross-env") == 0


def test_a_damaged_line_is_told_and_skipped(runs, capsys):
    good, other = runs("good", layer_records(random(), QUIET)), runs("other", layer_records(random(), QUIET))
    with (other / RECORDS).open("a") as file:
        file.write('{"schema": 1, "case_id": "x", "sta')
    assert run(good, other) == 0
    told = capsys.readouterr()
    assert "records.jsonl:6: damaged" in told.err and "4 SAME" in told.out


def test_runs_that_were_proved_and_not_timed(runs, capsys):
    proved = [{**failure(v, "ok"), "evidence": ""} for v in ("torch.eager", "cpu.simd")]
    before = runs("a", proved)
    assert run(before, runs("b", proved)) == 0
    assert "nothing was timed in both; 2 right in both" in capsys.readouterr().out
    assert run(before, runs("c", [proved[0], failure("cpu.simd")]), "--fail-on", "wrong") == 2


def test_nothing_in_common(runs):
    before = runs("a", layer_records(random(), QUIET))
    assert "no case is in both" in refused(before, runs("b", layer_records(random(), QUIET, layer="softmax")))


def test_a_run_with_only_failures(runs, capsys):
    right = runs("right", layer_records(random(), QUIET))
    failures = [failure(v, "crash", shape_name="model/0") for v in ("torch.eager", "cpu.simd")]
    failed, again = runs("failed", failures), runs("again", failures)
    assert run(right, failed) == 3
    told = capsys.readouterr()
    assert "is right: 2 crash" in told.err and "2 WRONG" in told.out
    assert run(right, failed, "--fail-on", "any") == 2
    assert run(failed, again) == 3


def test_the_command_line_ends_with_one_line_and_its_code(tmp_path):
    arguments = [sys.executable, "-m", "bench.compare", str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith("error: ") and "a: no such folder" in done.stderr and done.stderr.count("\n") == 1
    done = subprocess.run([*arguments[:3], "--help"], capture_output=True, text=True)
    assert "0 fine, 1 something is SLOWER" in done.stdout

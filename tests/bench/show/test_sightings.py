"""What several runs say of one thing: the newest comes first, and a sentence says what is not the same."""

from pathlib import Path
from typing import Any

from bench.records.read import Loaded
from bench.records.record import Record
from bench.show import sightings
from tests.bench.show.test_report import row


def run(name: str, commit: str = "0123456789", **environment: Any) -> Loaded:
    known: Any = dict(started="2026-01-01T10:00", git=dict(commit=commit, dirty=False), versions=dict(torch="2.11"))
    return Loaded(Path("results") / name, "layer", known | environment, [])


def seen(*pairs: tuple[Loaded, str, float]) -> list[sightings.Sighting]:
    rows = [(r, Record(**row("cpu.simd", seconds=seconds, utc=utc))) for r, utc, seconds in pairs]  # type: ignore[typeddict-item]
    (found,) = sightings.of(rows, lambda _, r: r["layer"]).values()
    return found


def test_the_newest_run_comes_first():
    found = seen((run("a"), "2026-01-01", 1e-3), (run("b"), "2026-01-03", 2e-3), (run("c"), "2026-01-02", 3e-3))
    assert [s.run.folder.name for s in found] == ["b", "c", "a"]


def test_what_differs_is_named_and_nothing_else():
    here, there = seen(
        (run("new"), "2026-01-02", 1e-3), (run("old", "fedcba9876", started="2025-12-31"), "2026-01-01", 2e-3)
    )
    assert sightings.unlike(here, there) == "the day, the commit"
    (told,) = sightings.differing([here, there], 0)
    assert told.startswith("results/old, 2025-12-31, commit fedcba9 has other numbers of it (cpu.simd 2 ms)")
    assert "summary takes this newer one" in told and "this one is older" in sightings.differing([here, there], 1)[0]


def test_two_runs_of_one_commit_and_day_are_told_to_be_that():
    here, there = seen((run("a"), "2026-01-02", 1e-3), (run("b"), "2026-01-01", 2e-3))
    assert "nothing that was written down" in sightings.unlike(here, there)


def test_runs_without_common_variants_or_times_need_no_word():
    found = seen((run("a"), "2026-01-02", 1e-3), (run("b"), "2026-01-01", 2e-3))
    found[1].rows[0]["variant"] = "cpu.other"
    assert sightings.differing(found, 0) == []
    found[1].rows[0] |= {"variant": "cpu.simd", "cache": "warm"}
    assert sightings.differing(found, 0) == []


def test_a_commit_with_changes_is_marked():
    assert sightings.commit_of(run("a", git=dict(commit="0123456789", dirty=True))) == "0123456+"
    assert sightings.commit_of(run("a", git={})) == ""

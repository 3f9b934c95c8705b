"""A layer's times over result sets: the right order, machine by machine, and what is within the noise."""

import json

import pytest
from rich.console import Console

from bench import history
from bench.cli import FAILED, USAGE, CannotGoOn
from bench.show import history as history_room
from tests.browser import asked, draw_all, look_like
from tests.compare_runs import ENVIRONMENT, failure, layer_record, write_run


def result_set(results, name, started, ms, machine="A CPU", **fields):
    """A result set in which cpu.simd took so many milliseconds, and torch.eager 5."""
    records = []
    for variant, seconds in (("cpu.simd", ms / 1e3), ("torch.eager", 5e-3)):
        samples = [[seconds * x] for x in (0.99, 1.0, 1.0, 1.0, 1.01)]
        more = {"cache": "cold", "noise_floor": 0.05, **fields}
        records.append(layer_record(variant, samples, [0] * 5, "gpt2-124m", **more))
    records.append(failure("cpu.bad", case_id="bad"))
    environment = {**ENVIRONMENT, "cpu": {**ENVIRONMENT["cpu"], "model": machine}}
    folder = write_run(results / name, records, environment)
    file = folder / "env.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "started": started}))


@pytest.fixture
def results(tmp_path):
    """Two sets of one machine, the later written first, and one of another machine."""
    result_set(tmp_path, "z/late", "2026-03-01T00:00:00.000Z", 1.5)
    result_set(tmp_path, "early", "2026-01-01T00:00:00.000Z", 2.0, source_hash="older")
    result_set(tmp_path, "middle", "2026-02-01T00:00:00.000Z", 2.05, source_hash="older")
    result_set(tmp_path, "other", "2026-02-02T00:00:00.000Z", 9.0, machine="Another CPU")
    return tmp_path


def page(results, capsys, *argv):
    assert history.main(["gelu", "--results", str(results), *argv]) == 0
    return capsys.readouterr().out


def test_sets_are_in_the_order_of_their_dates_with_changes_beyond_noise(results, capsys):
    lines = page(results, capsys, "--variant", "cpu.simd", "--device", "A CPU").splitlines()
    rows = [line for line in lines if "2026-" in line]
    assert [row.split("2026-")[1][:2] for row in rows] == ["01", "02", "03"]
    assert "+2.5% =" in rows[1]  # below the floor of 5 %
    assert "-27%" in rows[2] and "=" not in rows[2] and "changed" in rows[2]
    assert "2 ms" in rows[0] and "1.5 ms" in rows[2] and "012345678" in rows[0]
    assert all(len(line) <= 160 for line in lines)


def test_at_80_columns_a_set_still_says_when_it_was_measured(results, capsys, monkeypatch):
    monkeypatch.setattr(history_room, "console", lambda: Console(width=80, force_terminal=True, color_system=None))
    lines = page(results, capsys).splitlines()
    rows = [line for line in lines if " ms " in line]
    assert len(rows) >= 4 and all("2026-" in row for row in rows), "or it is no history"
    assert all(len(line) <= 80 for line in lines) and "not shown at 80 columns: commit" in "\n".join(lines)


def test_the_same_as_json(results, capsys):
    said = json.loads(page(results, capsys, "--variant", "cpu.simd", "--device", "A CPU", "--json").splitlines()[-1])
    points = said["points"]
    assert said["layer"] == "gelu" and [round(p["median_s"] * 1e3, 2) for p in points] == [2.0, 2.05, 1.5]
    assert [p["within_noise"] for p in points] == [None, True, False] and points[2]["change"] < 0.75
    assert {p["machine"] for p in points} == {"A CPU"}


def test_machines_are_apart_and_failures_have_no_row(results, capsys):
    text = page(results, capsys)
    assert text.index(", A CPU") < text.index(", Another CPU") and "cpu.bad" not in text
    other = text.split(", Another CPU")[1]
    assert "9 ms" in other and "%" in other and "2 ms" not in other
    assert "Another CPU" not in page(results, capsys, "--device", "a cpu")


def test_a_set_that_covers_less_is_no_change_of_the_one_before(results, capsys):
    lacks = dict(proof_cases=7, proof_cases_all=9, not_supported=["grouped queries"])
    result_set(results, "part", "2026-04-01T00:00:00.000Z", 0.5, **lacks)
    text = page(results, capsys, "--variant", "cpu.simd", "--device", "A CPU")
    row = next(line for line in text.splitlines() if "2026-04" in line)
    assert "500 µs" in row and "-67%" not in row


def test_the_times_are_those_of_the_cache_state_asked_for(results, capsys):
    result_set(results, "warm", "2026-04-01T00:00:00.000Z", 0.5, cache="warm")
    assert "0.5 ms" not in page(results, capsys)
    assert "500 µs" in page(results, capsys, "--cache", "warm")


def test_pictures(results, tmp_path, capsys):
    pytest.importorskip("vl_convert")
    png, html = tmp_path / "new" / "h.png", tmp_path / "h.html"
    page(results, capsys, "--png", str(png), "--html", str(html))
    assert png.read_bytes().startswith(b"\x89PNG") and len(png.read_bytes()) > 10_000
    text = html.read_text()
    assert "Another CPU" in text and 'src="http' not in text  # drawn without a network


def test_a_picture_needs_its_library(results, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(CannotGoOn, match="pip install vl-convert-python"):
        history.main(["gelu", "--results", str(results), "--png", str(tmp_path / "h.png")])


@pytest.mark.parametrize(
    ("argv", "told", "code"),
    [
        (["gelo"], "unknown layer in the results 'gelo'; did you mean 'gelu'", USAGE),
        (["gelu", "--variant", "cpu.smd"], "did you mean 'cpu.simd'", USAGE),
        (["gelu", "--device", "H200"], "no cold times of gelu on H200", FAILED),
        (["gelu", "--cache", "warm"], "no warm times of gelu", FAILED),
    ],
)
def test_nothing_there(results, argv, told, code):
    with pytest.raises(CannotGoOn, match=told) as caught:
        history.main([*argv, "--results", str(results)])
    assert caught.value.code == code


def test_no_results_at_all(tmp_path):
    with pytest.raises(CannotGoOn, match="no run in"):
        history.main(["gelu", "--results", str(tmp_path)])


# --- the page ---


def history_page(results, **more):
    layer = history_room.chosen(results, "gelu", "cold", None, more.get("device"))
    return history_room.Page("gelu", layer)


def test_commits_stand_on_the_axis_in_the_order_of_their_dates(results):
    shown = history_page(results, device="A CPU")
    (section,) = shown.sections
    rows = shown.data[section.chart].rows
    assert list(dict.fromkeys(r["set"] for r in rows)) == [f"2026-0{m}-01 00:00 0123456" for m in (1, 2, 3)]
    simd = [r for r in rows if r["variant"] == "cpu.simd"]
    assert [r["ms"] for r in simd] == pytest.approx([2.0, 2.05, 1.5]) and simd[2]["text"].endswith("-27%")
    assert [line.cells[2].text for line in section.lines if line.variant == "cpu.simd"] == ["-27%", "+2.5% =", "–"]
    assert [line.cells[2].style for line in section.lines if line.variant == "cpu.simd"] == [
        "number ok",
        "number",
        "number",
    ]


def test_machines_have_sections_of_their_own(results):
    assert [s.title.rpartition(", ")[2] for s in history_page(results).sections] == ["A CPU", "Another CPU"]


def test_the_floor_is_a_line_where_it_is_known(results):
    result_set(results, "floor", "2026-05-01T00:00:00.000Z", 2.0, floor_s=1e-3)
    (section,) = (shown := history_page(results, device="A CPU")).sections
    floors = {r["set"]: r["floor"] for r in shown.data[section.chart].rows}
    assert list(floors.values()) == [None, None, None, pytest.approx(1.0)]


def test_the_page_is_drawn_in_the_reports_frame(results, tmp_path, browser, capsys):
    page(results, capsys, "--html", str(tmp_path / "h.html"))
    look_like(browser, 390, 800, "dark")
    browser.get(f"file://{tmp_path / 'h.html'}")
    draw_all(browser)
    assert browser.execute_script("return document.querySelectorAll('.chart svg').length") == 2
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert asked(browser) == [] and browser.get_log("browser") == []

"""The comparison as a page: every verdict and change on it, marked where the machines differ, alive in a browser."""

from typing import Any

import numpy as np
import pytest

from bench import compare
from tests.browser import asked, charts_of, draw_all, look_like, wait_for
from tests.compare_runs import ENVIRONMENT, Noise, failure, layer_record, layer_records, step_records, write_run

QUIET = Noise(process=0.001, round_=0.001, sample=0.002)
TIMES = ("samples", "processes", "median_s", "low_s", "high_s", "noise")
EVIL = "<script>document.title = 'broken'</script>"


def records(slower=None, extra=()):
    random = np.random.default_rng(len(extra) + bool(slower))
    return [*layer_records(random, QUIET, slower=slower), *step_records(random), *extra]


@pytest.fixture
def page(tmp_path):
    """cpu.simd became slower, cpu.naive wrong; cpu.old is gone."""
    before = write_run(tmp_path / "main", records(extra=[layer_record("cpu.old", [[1e-3] * 3], [0])]))
    right = [r for r in records(slower={"cpu.simd": 0.2}) if r["variant"] != "cpu.naive"]
    wrong = failure("cpu.naive", shape_name="model/0") | {"evidence": EVIL}
    after = write_run(tmp_path / "branch", [*right, wrong])
    assert compare.main([str(before), str(after), "--html"]) == 0
    return after / "compare.html"


def test_a_page_holds_what_was_found(page):
    text = page.read_text()
    assert '<b class="bad">1</b> SLOWER' in text and "cpu.old" in text
    assert '<b class="bad">1</b> WRONG' in text and "&lt;script&gt;document.title" in text and EVIL not in text
    assert "None after" not in text, "what is wrong was not timed: that is no other timer"
    rows = {r["case"].split()[0]: r for r in charts_of(page)["changes-gelu"]["rows"]}
    simd = rows["cpu.simd"]
    assert simd["verdict"] == "SLOWER" and simd["ratio"] == pytest.approx(1.2, rel=0.03)
    assert simd["low"] < simd["ratio"] < simd["high"] and simd["most"] < simd["low"]  # beyond the grey band
    assert rows["torch.eager"]["verdict"] == "SAME" and rows["torch.eager"]["least"] < 1 < rows["torch.eager"]["most"]
    assert {r["case"].split()[0] for r in charts_of(page)["changes-steps"]["rows"]} >= {"ours", "torch.eager"}


def test_many_runs_a_side_are_named_by_their_folder(tmp_path, capsys):
    for side in ("before", "after"):
        for n in range(5):
            write_run(tmp_path / side / f"{n}", records())
    compare.main([str(tmp_path / "before"), str(tmp_path / "after"), "--html"])
    text = (tmp_path / "after" / "compare.html").read_text()
    assert "<h1>before (5 runs) → after (5 runs)</h1>" in text and "and 2 more, the last: 4, " in text
    assert capsys.readouterr().out.count("and 2 more") == 2


def test_what_is_known_of_noise_never_hides_the_changes(tmp_path):
    noisy = Noise(process=0.2, round_=0.05, sample=0.05)
    sides = [write_run(tmp_path / n, layer_records(np.random.default_rng(i), noisy, 2)) for i, n in enumerate("ab")]
    compare.main([*map(str, sides), "--html", str(tmp_path / "page.html")])
    rows = charts_of(tmp_path / "page.html")["changes-gelu"]["rows"]
    widest = max(max(r["high"], 1 / r["low"]) for r in rows)
    assert all(r["most"] <= widest**1.31 and r["least"] == pytest.approx(1 / r["most"]) for r in rows)


def test_across_environments_is_on_every_page(tmp_path):
    other = ENVIRONMENT | {"gpus": []}
    sides = write_run(tmp_path / "a", records()), write_run(tmp_path / "b", records(), other)
    compare.main([*map(str, sides), "--cross-env", "--html"])
    text = (tmp_path / "b" / "compare.html").read_text()
    assert '<div class="mark">ACROSS ENVIRONMENTS</div>' in text and "gpus" in text


def test_a_page_may_be_sent_to_others(page, tmp_path):
    assert str(tmp_path) not in page.read_text() and "branch, " in page.read_text()


def test_the_mark_is_not_on_other_pages(page):
    assert "ACROSS ENVIRONMENTS" not in page.read_text()


def test_a_page_that_cannot_be_written_changes_neither_verdicts_nor_their_print(tmp_path, capsys):
    sides = write_run(tmp_path / "a", records()), write_run(tmp_path / "b", records(slower={"cpu.simd": 0.2}))
    (tmp_path / "file").write_text("")
    arguments = [*map(str, sides), "--html", str(tmp_path / "file" / "page.html")]
    assert compare.main(arguments) == 3
    assert compare.main([*arguments, "--fail-on", "slower"]) == 1
    told = capsys.readouterr()
    assert "SLOWER" in told.out and told.err.startswith("error: cannot write") and len(told.err.splitlines()) == 2


def test_nothing_timed_and_nothing_changed_have_pages(tmp_path):
    proved: Any = {k: v for k, v in layer_record("cpu.simd", [[1e-3]], [0], cache=None).items() if k not in TIMES}
    for name, of in (("same", records()), ("proved", [proved])):
        sides = [write_run(tmp_path / name / side, of) for side in "ab"]
        assert compare.main([*map(str, sides), "--html"]) == 0
        text = (sides[1] / "compare.html").read_text()
        assert ("No change that can be told from noise" if name == "same" else "Nothing was timed in both") in text


def test_the_page_lives_in_a_browser(page, browser):
    browser.get(f"file://{page}")
    charts = charts_of(page)
    draw_all(browser)
    drawn = "return document.querySelectorAll('.chart svg').length"
    assert wait_for(lambda: browser.execute_script(drawn) == len(charts))
    assert browser.title != "broken" and asked(browser) == [] and browser.get_log("browser") == []
    by_verdict = "document.querySelectorAll('#gelu thead button')[4].click();"
    first = "return document.querySelector('#gelu tbody tr th').dataset.key"
    assert browser.execute_script(by_verdict + first) == "cpu.simd"  # the slower one on top


def test_the_page_fits_a_phone(page, browser):
    look_like(browser, 390, 800, "dark")
    browser.get(f"file://{page}")
    assert wait_for(lambda: browser.execute_script("return document.querySelector('.chart svg') !== null"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390

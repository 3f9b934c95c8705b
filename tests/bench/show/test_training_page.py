"""The page of training runs: what their journals say, whatever they say, alive in a real browser."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import report as command
from bench.cli import CannotGoOn
from bench.show import training_page
from bench.show.training_page import MOST_POINTS, Page, read, runs_in
from tests.browser import asked, charts_of, draw_all, look_like, wait_for

DRAWN = "return document.querySelectorAll('.chart svg').length"
EVIL = "<script>document.title = 'broken'</script>"


def step(number: int, loss: float | None = None, **more) -> dict[str, Any]:
    known = dict(event="step", step=number, loss=9 - 0.1 * number if loss is None else loss, norm=1.5, lr=1e-4)
    rates = dict(ms=20.0, tokens_per_s=12_800.0, tokens=256 * number, mfu={"palm": 0.42, "llmc": 0.4})
    return {**known, **rates, "memory_bytes": 3 * 10**8, "skipped": None, **more}


def begun(event: str = "start", at: int = 0, **options) -> dict[str, Any]:
    said = dict(model="gpt2-tiny", parameters=3_327_744, ranks=1, tokens_per_step=256, steps=12)
    kernels = {"matmul/qkv forward": "cpu.simd", "adamw forward": options.pop("adamw", "cpu.naive")}
    chosen = {"lr": 1e-4, "recompute": [], "device": "cpu", **options}
    return dict(event=event, step=at, options=chosen, kernels=kernels, **said)


def write(folder: Path, lines: list, **environment) -> Path:
    folder.mkdir(parents=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text)
    told = {"cpu": {"model": "a made-up CPU", "usable": 2}, "command": f"python -m bench.train {EVIL}", **environment}
    (folder / "env.json").write_text(json.dumps(told))
    return folder


def whole(**options) -> list:
    """Six steps, two more that a kill loses, a resume from 6, and on to 12."""
    lines: list = [begun(**options), *(step(n) for n in range(1, 9)), dict(event="val", step=4, loss=8.9)]
    lines += [dict(event="sample", step=4, text=f"once {EVIL}"), dict(event="val", step=8, loss=1.0)]
    lines += [begun("resume", 6, **options), *(step(n, 7 - 0.1 * n) for n in range(7, 13))]
    return [*lines, dict(event="val", step=12, loss=5.5), dict(event="end", step=12, why="all steps are done")]


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [write(tmp_path / "first", whole()), write(tmp_path / "second", whole(lr=3e-4, adamw="cpu.simd"))]


def test_of_steps_that_came_again_the_last_counts(runs):
    run = read(runs[0], "first")
    assert sorted(run.steps) == list(range(1, 13)) and run.steps[6]["loss"] == 8.4 and run.steps[7]["loss"] == 6.3
    assert sorted(run.validations) == [4, 12]  # that of step 8 was of weights which are lost


def test_steps_after_the_checkpoint_are_gone_even_where_they_did_not_come_again(tmp_path):
    lines = [begun(), *(step(n) for n in range(1, 9)), begun("resume", 6), step(7)]
    assert sorted(read(write(tmp_path / "r", lines), "r").steps) == list(range(1, 8))


def test_the_table_says_what_the_journals_say(runs):
    page = Page(runs)
    assert page.title == "Training gpt2-tiny"
    first = dict(zip(page.columns, page.rows[0].cells, strict=True))
    assert first == {
        "steps": "12 of 12",
        "tokens": "3,072",
        "loss": "5.8000",
        "best validation": "5.5000 at 12",
        "a step": "20 ms",
        "tokens/s": "12,800",
        "MFU": "42%",
        "memory": "0.30 GB",
        "begun": "once, 1 resume",
        "ended": "all steps are done",
    }
    assert page.rows[0].story == "gpt2-tiny, 3.3 M parameters, 256 tokens a step"
    assert page.machines == ["a made-up CPU, 2 cores"]


def test_a_steps_time_leaves_out_each_starts_first(tmp_path):
    lines = [begun(), step(1, ms=9000.0), step(2), step(3), begun("resume", 2), step(3, ms=9000.0)]
    assert dict(zip(Page.columns, Page([write(tmp_path / "r", lines)]).rows[0].cells, strict=True))["a step"] == "20 ms"


def test_several_runs_are_drawn_over_one_another_and_what_differs_is_said(runs):
    page = Page(runs)
    assert list(page.data) == ["loss", "norm", "lr", "speed", "mfu"]
    loss = page.data["loss"].rows
    assert {(r["run"], r["kind"]) for r in loss} == {(n, k) for n in ("first", "second") for k in ("train", "val")}
    assert [r["value"] for r in loss if (r["run"], r["kind"]) == ("second", "val")] == [8.9, 5.5]
    assert page.options == {"lr": ["0.0001", "0.0003"]} and page.same_options["recompute"] == "none"
    assert page.kernels["adamw forward"] == ["cpu.naive", "cpu.simd"]


def test_a_run_has_its_colour_also_where_another_has_no_curve(tmp_path):
    """Colours go by who comes first in the rows."""
    lines = {name: [begun(), step(1, mfu=mfu), step(2, mfu=mfu)] for name, mfu in (("a", None), ("b", {"palm": 0.3}))}
    data = Page([write(tmp_path / name, found) for name, found in lines.items()]).data
    order = {name: list(dict.fromkeys(row["run"] for row in chart.rows)) for name, chart in data.items()}
    assert order["mfu"] == order["loss"] == ["a", "b"]
    assert [row["value"] for row in data["mfu"].rows if row["run"] == "a"] == [None]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    folders = [write(tmp_path / side / "run", whole()) for side in ("a", "b")]
    assert [run.name for run in Page(folders).runs] == ["a/run", "b/run"]


def test_a_long_run_is_put_together_with_its_least_and_largest(tmp_path):
    lines = [begun(), *(step(n, 2.0 if n == 777 else 1.0) for n in range(1, 2501))]
    rows = Page([write(tmp_path / "long", lines)]).data["loss"].rows
    assert len(rows) <= MOST_POINTS and rows[-1]["step"] == 2500
    (odd,) = [r for r in rows if r["high"] == 2.0]
    assert odd["low"] == 1.0 and 1.0 < odd["value"] < 2.0 and "average of 5 steps" in odd["text"]


def test_what_is_no_number_is_not_drawn_and_what_cannot_be_read_is_counted(tmp_path):
    lines: list = [begun(), step(1), step(2, math.nan, norm=math.inf), step(3, norm=0.0, mfu=None, ms=None)]
    lines += [
        "[1, 2]\n",
        "{\n",
        dict(event="step", step="4"),
        dict(event="step"),
        {**step(5), "loss": "high", "mfu": 10**400},
    ]
    lines += [dict(event="not-finite", step=2, where="h0.qkv.weight", in_a_row=1)]
    lines += [dict(event=["step"], step=5), dict(event={}, step=5)]
    lines += [dict(event="news", step=5), step(6, skipped="loss"), '{"event": "step", "st']
    page = Page([write(tmp_path / "r", lines)])
    assert [r["step"] for r in page.data["loss"].rows] == [1, 3, 6]
    assert [r["step"] for r in page.data["norm"].rows] == [1, 5, 6]  # of a logarithmic axis
    assert page.troubles == [
        "r: 1 updates were left out, the first at step 6 (loss)",
        "r: step 2 was not finite, first in h0.qkv.weight",
        "r: 7 lines of train.jsonl cannot be read",
    ]
    assert dict(zip(page.columns, page.rows[0].cells, strict=True))["ended"] == "not yet, or killed"


@pytest.mark.parametrize("environment", ["", "[]", '{"cpu": 3, "gpus": 4}', "\udc80"])
def test_a_strange_environment_is_no_reason_for_no_page(tmp_path, environment):
    folder = write(tmp_path / "r", [begun(), step(1)])
    (folder / "env.json").write_bytes(environment.encode(errors="surrogateescape"))
    assert Page([folder]).machines == []


def test_which_folders_are_training_runs(tmp_path, runs):
    assert runs_in(runs) == runs and runs_in([tmp_path]) == runs and runs_in([tmp_path / "none"]) == []
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "records.jsonl").write_text("")
    assert runs_in([tmp_path]) == []  # a page of the layers, as before
    assert runs_in([tmp_path, runs[0]]) == runs[:1]


def test_nothing_to_show_is_said(tmp_path):
    with pytest.raises(CannotGoOn, match="no step is known"):
        Page([write(tmp_path / "r", [begun()])])


def test_the_command_writes_the_page_and_refuses_a_mixture(tmp_path, runs, capsys, ended):
    assert command.main([str(runs[0]), str(runs[1]), "--title", "two"]) == 0
    text = (runs[0] / "report.html").read_text()
    assert "<h1>two</h1>" in text and "once &lt;script&gt;" in text and EVIL not in text
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "records.jsonl").write_text("")
    code, said = ended(command, runs[0], tmp_path / "layer")
    assert code == 64 and "not a training run" in said


def test_the_pictures_are_drawn(tmp_path, runs):
    assert command.main([str(runs[0]), "--png", str(tmp_path / "png")]) == 0
    assert (tmp_path / "png" / "loss.png").stat().st_size > 5000


def test_the_page_lives_in_a_browser(runs, browser):
    command.main(list(map(str, runs)))
    page = runs[0] / "report.html"
    for width, scheme in ((1400, "light"), (390, "dark")):
        look_like(browser, width, 900, scheme)
        browser.get(f"file://{page}")
        draw_all(browser)
        assert wait_for(lambda: browser.execute_script(DRAWN) == len(charts_of(page)))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.title != "broken" and asked(browser) == [] and browser.get_log("browser") == []


def test_reading_needs_no_trainer():
    assert training_page.FILE == "train.jsonl"
    from bench.trainer import journal

    assert training_page.FILE == journal.FILE

"""The report: from records alone, whole where rows failed, safe against what files say, and alive in a real browser."""

import base64
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import HOME
from bench import report as command
from bench.cli import CannotGoOn
from bench.records.run import SCHEMA, Run
from bench.show import page as page_frame
from bench.show import report
from tests.browser import asked, charts_of, draw_all, look_like, wait_for

EVIL = "<script>document.title = 'broken'</script>"


def row(variant: str, phase: str = "forward", cache: str | None = "cold", seconds: float = 1e-3, **more):
    timed = dict(
        status="ok",
        median_s=seconds,
        low_s=seconds * 0.95,
        high_s=seconds * 1.05,
        noise=0.03,
        samples=[[seconds * (1 + 0.02 * i)] for i in range(5)],
        speedup=2e-3 / seconds,
        speedup_low=1.9e-3 / seconds,
        speedup_high=2.1e-3 / seconds,
        noise_floor=0.01,
        bytes_per_s=1e9,
        flops_per_s=1e9,
        of_ceiling=0.5,
    )
    known = dict(
        case_id=f"{variant}-{phase}-{cache}",
        layer="gelu",
        variant=variant,
        story=f"{variant}'s story.",
        phase=phase,
        shape_name="gpt2-124m",
        shape={"N": 1024},
        dtype="fp32",
        calls=12,
        control=False,
        cache=cache,
        error_ratio=1.2,
        proof_cases=8,
        deterministic=True,
        flops=20480,
        bytes=8192,
        floor_s=5e-4,
        source_hash="0",
        device="cpu",
        reproduce=f"python -m bench.layer gelu --only {variant}",
    )
    return known | (timed if cache else {}) | more


def step_row(variant: str, seconds: float, **more):
    losses = [11.0, 10.5, 10.1]
    known = dict(
        shape_name=None, shape=dict(B=4, T=64, accumulation=1), layer="gpt2-tiny", losses=losses, first_loss=11.0
    )
    return row(variant, "step", None) | known | row(variant, seconds=seconds) | known | dict(phase="step") | more


ROWS = [
    row("torch.eager", seconds=2e-3, cache="cold"),
    row("torch.eager", seconds=2e-3, cache="warm"),
    row("cpu.simd", seconds=1e-3, story=EVIL),
    row("cpu.naive", cache=None, status="wrong", evidence=f"poison survived {EVIL}"),
    row("cuda.naive", cache=None, status="skipped", evidence="needs an NVIDIA GPU"),
]
STEPS = [
    step_row(
        "ours", 0.1, in_context_s={"matmul/qkv forward": 0.06, "gelu forward": 0.03}, kernels={"gelu forward": "a"}
    ),
    step_row(
        "ours, gelu=cpu.naive",
        0.12,
        in_context_s={"matmul/qkv forward": 0.06, "gelu forward": 0.055},
        kernels={"gelu forward": "b"},
        predicted_alone_s=0.03,
        predicted_in_context_s=0.025,
        change_s=0.02,
        change_low_s=0.015,
        change_high_s=0.026,
    ),
    step_row("torch.eager", 0.2),
]


def write_run(folder: Path, rows, kind: str = "layer") -> Path:
    run = Run.create(kind, folder)
    for r in rows:
        run.append(r)
    run.close()
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "layers", ROWS)


@pytest.fixture
def page(folder, tmp_path):
    steps = write_run(tmp_path / "step", STEPS, "e2e")
    out = tmp_path / "page.html"
    assert command.main([str(folder), str(steps), "--out", str(out)]) == 0
    return out


def test_a_page_is_one_file_of_at_most_two_megabytes_without_network(page):
    text = page.read_text()
    assert page.stat().st_size < 2e6
    markup = text.partition('<script type="module">')[0]
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?!data:|#)", markup)
    for told in ("cpu.simd", "torch.eager", "needs an NVIDIA GPU", "python -m bench.layer gelu --only cpu.simd"):
        assert told in text


def test_what_variants_say_is_escaped(page):
    text = page.read_text()
    assert EVIL not in text and "&lt;script&gt;document.title" in text


def test_charts_hold_what_the_records_hold(page):
    charts = charts_of(page)
    times = next(c for name, c in charts.items() if name.startswith("gelu-forward"))
    assert [(r["variant"], r["ms"]) for r in times["rows"]] == [("cpu.simd", 1.0), ("torch.eager", 2.0)]
    assert charts["overview"]["rows"][0]["speedup"] == pytest.approx(2)
    parts = next(c for name, c in charts.items() if name.startswith("parts"))
    ours = {r["part"]: r["end"] - r["start"] for r in parts["rows"] if r["contestant"] == "ours"}
    assert ours == pytest.approx({"matmul": 60, "gelu": 30, "remainder": 10})
    (steps,) = (c for name, c in charts.items() if name.startswith("step-"))
    assert [r["backend"] for r in steps["rows"]] == ["ours", "ours", "torch"]  # each has a colour
    swaps = next(c for name, c in charts.items() if name.startswith("swaps"))["rows"]
    assert {r["by"]: r["predicted"] for r in swaps} == pytest.approx({"layers in context": 25, "layers alone": 30})
    assert [(r["measured"], r["low"], r["high"]) for r in swaps] == [pytest.approx((20, 15, 26))] * 2


def test_a_roofline_has_measured_roofs_and_those_of_the_datasheet_where_it_is_known(tmp_path):
    roofs: dict[str, Any] = dict(
        ceiling_bytes_per_s=2e9, ceiling_flops_per_s=4e9, datasheet_bytes_per_s=3e9, datasheet_flops_per_s=5e9
    )
    rows = [row("cuda.fast", device="cuda", registers=40, spill_bytes=0, occupancy=0.5, **roofs), row("torch.eager")]
    page = report.Page(report.read_runs([write_run(tmp_path / "gpu", rows)]))
    lines = [r for r in page.data["roofline-gelu"].rows if r["kind"] == "roof"]
    at_end = {r["name"]: r["gflops"] for r in lines if r["label"]}
    assert at_end == {"measured ceiling, fp32": 4.0, "datasheet, fp32": 5.0}
    least = {r["name"]: r["gflops"] / r["intensity"] for r in lines if r["intensity"] == 1.25}
    assert least == pytest.approx({"measured ceiling, fp32": 2.0, "datasheet, fp32": 3.0})
    (case,) = page.layers[0].cases
    table = next(t for t in case.tables if t.title == "resources")
    told = dict(zip(table.columns, (cell.text for cell in table.lines[0].cells), strict=True))
    assert (told["registers"], told["spills B"], told["occupancy"]) == ("40", "0", "50%")


def test_records_that_do_not_tell_their_ceilings_have_the_roof_of_their_floors(tmp_path):
    page = report.Page(report.read_runs([write_run(tmp_path / "old", [row("cpu.simd")])]))
    (end,) = [r for r in page.data["roofline-gelu"].rows if r.get("label")]
    assert end["gflops"] / end["intensity"] == pytest.approx(8192 / 5e-4 / 1e9)  # bytes by floor


def test_two_runs_of_one_thing_say_why_they_differ_and_the_newest_counts(tmp_path):
    old = [row("torch.eager", utc="2026-01-01"), row("cpu.simd", utc="2026-01-01", seconds=4e-3, source_hash="1")]
    new = [row("torch.eager", utc="2026-02-01"), row("cpu.simd", utc="2026-02-01", seconds=1e-3)]
    folders = [write_run(tmp_path / name, rows) for name, rows in (("new", new), ("old", old))]
    page = report.Page(report.read_runs(folders))
    assert [b.row["median_s"] for b in page.best] == [1e-3]
    first, second = page.layers[0].cases
    assert (
        "older" not in first.title
        and f"{tmp_path.name}/old" in first.warnings[0]
        and "cpu.simd 4 ms" in first.warnings[0]
    )
    assert "the variants' sources" in first.warnings[0] and "the versions" not in first.warnings[0]
    assert second.title.endswith("older)") and "this one is older" in second.warnings[0]
    assert len({c.anchor for c in page.layers[0].cases}) == 2


def test_one_run_warns_of_nothing(folder):
    assert [c.warnings for c in report.Page(report.read_runs([folder])).layers[0].cases] == [[]]


def test_a_noisy_case_tells_no_speed_and_a_run_of_them_says_that_it_ranks_nothing(tmp_path):
    noisy: dict[str, Any] = dict(noise_floor=1.21)
    page = report.Page(
        report.read_runs([write_run(tmp_path / "r", [row("torch.eager", **noisy), row("cpu.simd", **noisy)])])
    )
    assert page.noise.startswith("This run ranks nothing: the noise floor is ±121%")
    (case,) = page.layers[0].cases
    table = case.tables[0]
    assert [line.cells[table.columns.index("vs torch")].text for line in table.lines] == ["–", "–"]
    assert "ranks nothing" in case.warnings[0] and [b.text for b in page.best] == ["–"]
    assert [card.facts for card in page.cards[1:3]] == [[], []]


@pytest.mark.parametrize("seed", range(4))
def test_records_that_lack_most_fields_have_a_page(tmp_path, seed):
    """What was not measured is absent, in any combination: records of other programs and of older versions."""
    known = {"case_id", "status", "layer", "variant", "phase", "dtype", "shape"}
    dice = random.Random(seed)
    rows = [{k: v for k, v in r.items() if k in known or dice.random() < 0.6} for r in [*ROWS, *STEPS] * 5]
    rows += [r | {"status": "simulated", "variant": "cuda.naive"} for r in rows[:5]]
    rows = [r | {"case_id": f"{i}"} for i, r in enumerate(rows)]
    shown = report.Page(report.read_runs([write_run(tmp_path / "r", rows)]))
    assert "gelu" in page_frame.render(shown, report.TEMPLATE)


def test_every_title_has_its_length(tmp_path):
    long: dict[str, Any] = dict(shape={"B": 4, "T": 64, "C": 8})
    runs = [
        write_run(tmp_path / "a", [row("torch.eager", **long), row("cpu.simd", **long)]),
        write_run(tmp_path / "b", STEPS, "e2e"),
    ]
    page = report.Page(report.read_runs(runs))
    assert all("T=64" in title for title in (page.title, page.layers[0].cases[0].title, page.steps[0].title))
    assert report.telling_size(row("cpu.simd")) == "N=1024"  # a layer without T


def test_a_simulated_set_is_titled_so_and_tells_what_is_proved_and_what_its_counts_mean(tmp_path):
    counts: dict[str, Any] = dict(
        status="simulated", moved_of_minimum=1.2, registers=40, spill_bytes=8, notes=["a hint"]
    )
    rows = [
        row("cuda.naive", cache=None, **counts),
        row("cuda.shared", cache=None, **counts | dict(spill_bytes=0, moved_of_minimum=1.0)),
        row("cuda.bad", cache=None, status="wrong", evidence="off"),
        row("cuda.naive", "backward", cache=None, **counts),
    ]
    run = write_run(tmp_path / "sim", rows)
    page = report.Page(report.read_runs([run]))
    assert page.title == "gelu: proved in the simulator, no times"
    assert page.proofs
    proved = {variant: [text for text, _ in cells] for _, variant, cells in page.proofs.rows}
    assert page.proofs.columns == ["forward fp32", "backward fp32"]
    assert proved == {
        "cuda.naive": ["proved 1.2x", "proved 1.2x"],
        "cuda.shared": ["proved 1.2x", "–"],
        "cuda.bad": ["wrong", "–"],
    }
    assert [f.number for f in page.cards[0].facts] == ["2", "1"] and [f.number for f in page.cards[2].facts][:2] == [
        "2",
        "8 B",
    ]
    shown = {title for table in page.layers[0].counted for title in table.columns} - {"pass", "dtype", "notes"}
    assert shown <= {title for title, _ in page.meanings}  # no count without a sentence
    assert page_frame.write(page, report.TEMPLATE, tmp_path / "p.html").read_text().count("copy command</button>") >= 3


def test_a_librarys_kernel_is_nobodys_own(tmp_path):
    rows = [row("torch.eager", seconds=2e-3), row("cuda.cublaslt", seconds=1e-3), row("cuda.shared", seconds=3e-3)]
    page = report.Page(report.read_runs([write_run(tmp_path / "r", rows)]))
    assert [b.row["variant"] for b in page.best] == ["cuda.shared"]


def test_far_apart_times_are_points_on_a_logarithmic_axis(tmp_path):
    run = write_run(tmp_path / "far", [row("torch.eager"), row("cpu.naive", seconds=1.0)])
    (chart,) = [c for n, c in report.Page(report.read_runs([run])).data.items() if n.startswith("gelu-forward")]
    assert chart.spec == "times_log"


def test_a_pages_numbers_of_what_failed_are_one_number(tmp_path):
    """Cold and warm, and other shapes, are no more failures; another reason, dtype or pass is."""
    bad: dict[str, Any] = dict(status="wrong", evidence="poison survived")
    rows = [row("cpu.a", cache=cache, **bad) for cache in ("cold", "warm")]
    rows += [row("cpu.a", case_id="wide", shape_name="llama2-15m", **bad), row("cpu.b"), row("cpu.b", cache="warm")]
    shown = report.Page(report.read_runs([write_run(tmp_path / "one", rows)]))
    assert shown.counts == {"wrong": 1, "ok": 1} and len(shown.troubles["failed"]) == 1
    assert any(card.title == "1 failed" for card in shown.cards)
    rows.append(row("cpu.a", case_id="other", **bad | {"evidence": "input a changed"}))
    rows.append(row("cpu.a", phase="backward", **bad))
    shown = report.Page(report.read_runs([write_run(tmp_path / "three", rows)]))
    assert shown.counts["wrong"] == len(shown.troubles["failed"]) == 3


def test_a_run_with_only_failures_has_a_page(tmp_path):
    run = write_run(tmp_path / "bad", [ROWS[3]])
    assert command.main([str(run)]) == 0
    assert "poison survived" in (run / "report.html").read_text()


def test_a_suites_folder_is_a_page_of_the_runs_inside_it(tmp_path):
    write_run(tmp_path / "suite", [dict(case_id="time-gelu", status="ok")], "suite")
    write_run(tmp_path / "suite" / "time-gelu", ROWS)
    (found,) = report.read_runs([tmp_path / "suite"])
    assert found.folder.name == "time-gelu" and len(found.records) == len(ROWS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ": no such folder"),
        ("", "no readable record"),
        ('{"case_id": "a", "status": "ok", "schema": 99}\n', "no readable record"),
        ("not json\n", "no readable record"),
    ],
)
def test_runs_that_cannot_be_shown_say_why(tmp_path, content, said):
    run = tmp_path / "run"
    if content is not None:
        run.mkdir()
        (run / "records.jsonl").write_text(content)
    with pytest.raises(CannotGoOn, match=said):
        command.main([str(run)])


def test_damaged_lines_are_told_and_the_rest_is_shown(folder, capsys):
    with open(folder / "records.jsonl", "a") as file:
        file.write(f'{{"half": \n{{"case_id": "x", "status": "ok", "schema": {SCHEMA + 1}}}\n')
    assert command.main([str(folder)]) == 0
    assert "damaged" in capsys.readouterr().err
    assert "2 damaged lines were left out" in (folder / "report.html").read_text()


def test_a_run_leaves_its_page_unless_nobody_wants_it(folder, monkeypatch):
    assert "LAYERBENCH_REPORT is 0" in report.write_beside(folder) and not (folder / "report.html").exists()
    monkeypatch.delenv("LAYERBENCH_REPORT")
    assert report.write_beside(folder) == f"report: {folder / 'report.html'}" and (folder / "report.html").exists()


def test_without_its_packages_a_run_still_ends_well(folder, monkeypatch):
    monkeypatch.delenv("LAYERBENCH_REPORT")
    monkeypatch.setattr(page_frame, "NEEDED", ("altair", "no_such_package"))
    said = report.write_beside(folder)
    assert "no_such_package" in said and f"python -m bench.report {folder}" in said
    with pytest.raises(CannotGoOn, match="pip install altair"):
        command.main([str(folder)])


def test_a_package_that_is_there_and_cannot_be_imported_costs_the_page_alone(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("LAYERBENCH_REPORT")
    (tmp_path / "vl_convert.py").write_text("raise ImportError('GLIBC_2.39 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vl_convert", raising=False)
    assert report.write_beside(folder).startswith("no report: ImportError: GLIBC_2.39 not found")


def test_a_page_that_cannot_be_written_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("LAYERBENCH_REPORT")
    (tmp_path / "file").write_text("")
    with pytest.raises((CannotGoOn, OSError)):
        command.main([str(folder), "--out", str(tmp_path / "file" / "page.html")])
    assert "no report" in report.write_beside(tmp_path / "nowhere")


def test_pictures_are_written(folder, tmp_path):
    assert command.main([str(folder), "--png", str(tmp_path / "png")]) == 0
    pictures = sorted(p.name for p in (tmp_path / "png").iterdir())
    assert "overview.png" in pictures and "overview.svg" in pictures
    assert (tmp_path / "png" / "overview.png").read_bytes().startswith(b"\x89PNG")


# --- in a browser ---

CUT = """return [...document.querySelectorAll(arguments[0])].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.ariaLabel)"""


def test_the_page_lives_in_a_browser(page, browser):
    browser.get(f"file://{page}")
    draw_all(browser)
    charts = charts_of(page)
    assert wait_for(
        lambda: browser.execute_script("return document.querySelectorAll('.chart svg').length") == len(charts)
    )
    assert browser.title != "broken"
    # nothing went over the network, nothing complained
    assert asked(browser) == [] and browser.get_log("browser") == []
    # a table is sorted by a click, and by another one the other way
    first = "return document.querySelector('#gelu tbody tr th').dataset.key"
    button = "document.querySelectorAll('#gelu thead button')[0].click();"
    names = sorted(["cpu.naive", "cpu.simd", "cuda.naive", "torch.eager"])
    assert browser.execute_script(button + first) == names[0]
    assert browser.execute_script(button + first) == names[-1]
    # rows are filtered
    script = """const input = document.querySelector('#gelu input[type=search]'); input.value = 'simd';
        input.dispatchEvent(new Event('input'));
        return [...document.querySelectorAll('#gelu tbody tr')].filter(r => !r.hidden).length"""
    assert browser.execute_script(script) == 1


def test_the_first_screen_leads_to_the_layers(tmp_path, browser):
    rows = [
        row(v, phase, dtype=d)
        for v in ("torch.eager", "cpu.simd")
        for phase in ("forward", "backward")
        for d in ("fp32", "bf16")
    ]
    rows = [r | dict(case_id=f"{i}") for i, r in enumerate(rows)]
    run = write_run(tmp_path / "r", rows)
    assert command.main([str(run)]) == 0
    browser.set_window_size(1400, 900)
    browser.get(f"file://{run / 'report.html'}")
    bottom = """return Math.max(...[...document.querySelectorAll('.cards .card, .grid')]
        .map(e => e.getBoundingClientRect().bottom))"""
    assert 0 < browser.execute_script(bottom) <= 900
    shown = "return [...document.querySelectorAll('.grids > *')].filter(g => !g.hidden).map(g => g.dataset.name)"
    assert browser.execute_script(shown) == ["bf16"]
    browser.execute_script("document.querySelectorAll('.switch button')[1].click()")
    assert browser.execute_script(shown) == ["fp32"]
    # a cell of the grid leads to its case, and unfolds it
    last = "[...document.querySelectorAll('.grids > :not([hidden]) td a')].pop()"
    name = browser.execute_script(f"const cell = {last}; cell.click(); return cell.hash.slice(1)")
    assert "backward" in name and "fp32" in name
    assert wait_for(lambda: browser.execute_script("return document.getElementById(arguments[0]).open", name))


FULL: dict[str, Any] = dict(
    uncopied_s=1e-3, span_s=1e-3, graph_s=1e-3, launch_s=1e-5, workspace_bytes=10**9, saved_bytes=10**9,
    peak_bytes=10**9, sm_mhz=1980.0, energy_j=0.1, compile_s=12.5, registers=255, spill_bytes=1024, shared_bytes=232448,
    occupancy=0.125, notes=["reads a vector in two halves " * 4],
    configuration="BLOCK_M=128 BLOCK_N=256 BLOCK_K=64 warps=8 stages=4 GROUP=8",
)  # fmt: skip


def test_no_table_is_cut_on_a_common_screen(tmp_path, browser):
    rows = [row("cuda.persistent_deterministic", device="cuda", **FULL), row("torch.eager", **FULL)]
    rows += [row("cuda.bad", cache=None, status="wrong", evidence="a_very_long_word_of_evidence" * 20, **FULL)]
    sim = row(
        "cuda.long", cache=None, **FULL | dict(status="simulated", moved_of_minimum=1.2, sectors_per_request=31.7)
    )
    steps = [
        r | dict.fromkeys(("mfu_palm_of_ceiling", "mfu_llmc_of_ceiling", "mfu_palm_of_datasheet"), 0.5) for r in STEPS
    ]
    folders = [write_run(tmp_path / "a", [*rows, sim]), write_run(tmp_path / "b", steps, "e2e")]
    assert command.main([*map(str, folders), "--out", str(tmp_path / "p.html")]) == 0
    look_like(browser, 1400, 900, "light")
    browser.get(f"file://{tmp_path / 'p.html'}")
    draw_all(browser)
    assert browser.execute_script(CUT, ".table") == []
    # and a print has what is open, at the width of its paper
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media="print"))
    look_like_paper = dict(width=704, height=1000, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", look_like_paper)
    try:
        assert browser.execute_script(CUT, ".table") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 704
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media=""))


def test_the_page_is_dark_where_people_want_it_and_fits_a_phone(page, browser):
    look_like(browser, 390, 800, "dark")
    browser.get(f"file://{page}")
    red, green, blue = map(
        int, re.findall(r"\d+", browser.execute_script("return getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert red + green + blue < 150
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    label = "return getComputedStyle(document.querySelector('.chart svg text')).fill"
    assert wait_for(lambda: browser.execute_script("return document.querySelector('.chart svg text') !== null"))
    assert sum(map(int, re.findall(r"\d+", browser.execute_script(label))[:3])) > 300  # light letters on dark
    # a chart is as wide as the screen lets it be, and no wider; a row's name stands above it
    draw_all(browser)
    assert browser.execute_script(CUT, ".chart") == []


@pytest.mark.slow
def test_the_committed_results_fit_a_screen_and_fifteen_sheets(tmp_path, browser):
    out = tmp_path / "p.html"
    runs = [str(HOME / "results" / "intel-xeon-2-cores" / name) for name in ("layers-bf16", "e2e-gpt2-124m-bf16")]
    assert command.main([*runs, "--out", str(out)]) == 0
    look_like(browser, 1400, 900, "light")
    browser.get(f"file://{out}")
    assert browser.execute_script("return document.querySelector('.grid').getBoundingClientRect().bottom") <= 900
    browser.execute_async_script("const done = arguments[0]; window.drawOpen().then(() => done());")
    sheets = browser.execute_cdp_cmd("Page.printToPDF", dict(paperWidth=8.27, paperHeight=11.69))
    assert len(re.findall(rb"/Type */Page\b", base64.b64decode(sheets["data"]))) <= 15

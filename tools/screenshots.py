"""Pictures for docs/: the report of the committed runs in a real browser, and two tables as a terminal shows them.

.venv/bin/python tools/screenshots.py                   needs chromium and chromedriver (Debian: chromium-driver)
.venv/bin/python tools/screenshots.py BEFORE AFTER      also the comparison of two folders of runs
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
RUNS = HOME / "results" / "intel-xeon-2-cores"
SHOWN = ("layers-bf16", "e2e-gpt2-124m-fp32", "e2e-gpt2-124m-bf16")
FLOPS_MATTER = ("attention", "matmul")
TABLES = (("layers-bf16/attention", "attention", "forward"), ("layers-bf16/layernorm", "layernorm", "forward"))
INTRODUCTION = f"""# What `bench.layer` shows, at two widths

Two tables of [results/{RUNS.name}](../results/{RUNS.name}), as terminals of 80 and of 120 columns
show them. Names are never cut. What failed, and who was skipped, stands below its table in full. A pipe gets every
column.
"""
SHOTS = (  # name, width, height, colour scheme, what to scroll to
    ("report-light", 1400, 1100, "light", ""),
    ("report-step", 1400, 760, "light", "step-1"),
    ("report-dark", 1400, 1250, "dark", "attention"),
    ("report-narrow", 390, 1000, "dark", "attention"),
    ("report-ladder", 1400, 900, "light", "matmul"),
    ("report-print", 794, 1123, "print", ""),
)
SIMULATED = HOME / "results" / "simulator-sm_90a"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compared", type=Path, nargs="*", metavar="BEFORE AFTER", help="two folders of runs")
    compared = parser.parse_args().compared
    if len(compared) not in (0, 2):
        parser.error("name both folders of runs, or none")
    from bench import compare
    from bench.show import report

    folder = HOME / "docs"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        report.write(report.Page(report.read_runs([RUNS / name for name in SHOWN])), report.TEMPLATE, page)
        for shot in SHOTS:
            take(page, folder, *shot)
        report.write(report.Page(report.read_runs([SIMULATED])), report.TEMPLATE, page)
        take(page, folder, "report-simulated", 1400, 1000, "light", "")
        if compared:
            page = Path(scratch) / "compare.html"
            compare.main([*map(str, compared), "--fail-on", "any", "--html", str(page)])
            take(page, folder, "compare", 1400, 900, "light", "")
    terminal(folder / "terminal.md")


def take(page: Path, folder: Path, name: str, width: int, height: int, scheme: str, place: str) -> None:
    from tests.browser import look_like, open_browser

    browser = open_browser()
    try:
        look_like(browser, width, height, "light" if scheme == "print" else scheme)
        if scheme == "print":  # as paper has it, its first sheet
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(media="print"))
        browser.get(f"file://{page}")
        browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
        if place:
            browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", place)
        time.sleep(2)  # charts are drawn when they come near
        browser.save_screenshot(str(folder / f"{name}.png"))
    finally:
        browser.quit()


def terminal(file: Path) -> None:
    """Two cases of the committed runs as terminals of two widths show them."""
    from rich.console import Console

    from bench.records import read
    from bench.show.terminal import Screen
    from bench.trial.rows import facts

    parts = [INTRODUCTION]
    for width in (80, 120):
        out = io.StringIO()
        console = Console(width=width, force_terminal=True, color_system=None, file=out)
        for run, layer, phase in TABLES:
            rows, _ = read.read_records(RUNS / run)
            rows = [r for r in rows if (r["layer"], r["phase"]) == (layer, phase)]
            screen = Screen()
            screen.console = console
            shape = " ".join(f"{axis}={size}" for axis, size in rows[0]["shape"].items() if axis != "dtype")
            title = f"{layer} {phase} {rows[0]['shape_name']} {rows[0]['dtype']}: {shape}"
            screen.timings(title, facts(rows[0], None), rows, ("cold", "warm"), layer in FLOPS_MATTER)
        shown = "".join(f"    {line}".rstrip() + "\n" for line in out.getvalue().strip("\n").split("\n"))
        parts.append(f"\n## {width} columns\n\n{shown}")
    file.write_text("".join(parts))


if __name__ == "__main__":
    main()

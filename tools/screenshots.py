"""Pictures for docs/: the report of the committed runs in a real browser, and a table as a terminal shows it.

.venv/bin/python tools/screenshots.py                   needs chromium and chromedriver (Debian: chromium-driver)
.venv/bin/python tools/screenshots.py BEFORE AFTER      also the comparison of two folders of runs
"""

import io
import re
import sys
import tempfile
import time
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
RUNS = HOME / "results" / "amd-epyc-2-cores"
SHOTS = (  # name, width, height, colour scheme, what to scroll to
    ("report-light", 1400, 1100, "light", "summary"),
    ("report-step", 1400, 760, "light", "step-1"),
    ("report-dark", 1400, 1250, "dark", "attention"),
    ("report-narrow", 390, 1000, "dark", "attention"),
)


def main() -> None:
    from bench import compare
    from bench.show import report

    folder = HOME / "docs"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        report.write(report.Page(report.read_runs([RUNS])), report.TEMPLATE, page)
        for shot in SHOTS:
            take(page, folder, *shot)
        if len(sys.argv) == 3:
            page = Path(scratch) / "compare.html"
            compare.main([*sys.argv[1:], "--html", str(page)])
            take(page, folder, "compare", 1400, 900, "light", "")
    terminal(folder / "terminal.svg")


def take(page: Path, folder: Path, name: str, width: int, height: int, scheme: str, place: str) -> None:
    from tests.browser import look_like, open_browser

    browser = open_browser()
    try:
        look_like(browser, width, height, scheme)
        browser.get(f"file://{page}")
        browser.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
        if place:
            browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", place)
        time.sleep(2)  # charts are drawn when they come near
        browser.save_screenshot(str(folder / f"{name}.png"))
    finally:
        browser.quit()


def terminal(file: Path) -> None:
    """The table of one case of the committed run."""
    from rich.console import Console

    from bench.records import read
    from bench.show.terminal import Screen
    from bench.trial.rows import facts

    rows, _ = read.read_records(RUNS / "layers-fp32")
    rows = [r for r in rows if (r["layer"], r["phase"], r["control"]) == ("attention", "forward", False)]
    rows = [r for r in rows if r["status"] == "ok"]
    screen = Screen()
    screen.console = Console(width=150, record=True, force_terminal=True, file=io.StringIO())
    title = "attention forward gpt2-124m fp32: B=4 T=1024 NH=12 NKV=12 HS=64 causal=True"
    screen.timings(title, facts(rows[0], None), rows, ("cold", "warm"), True)
    picture = screen.console.export_svg(title="python -m bench.layer attention --all")
    file.write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    )  # fonts from the network: not needed


if __name__ == "__main__":
    main()

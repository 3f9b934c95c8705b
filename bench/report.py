"""python -m bench.report RUN…: one HTML page of one or more runs, in one file that needs no network.

python -m bench.report runs/20261121T152517Z-layer-228fa2                 writes report.html into the run's folder
python -m bench.report results/DEVICE/layers-bf16 --out report.html        several runs on one page
python -m bench.report runs/first runs/second --out curves.html           training runs, over one another
python -m bench.report RUN --png docs/                                    the charts as pictures too (.png and .svg)

The page is built from the records alone, on any machine, also long after: what is fastest for each layer and how near
the ceiling, every variant's check and times, the training step beside PyTorch's, what failed and why, and how it was
measured.
"""

import argparse
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.report", description=__doc__)
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or folders that hold some")
    p.add_argument("--out", type=Path, help="the page (default: report.html in the first run's folder)")
    p.add_argument("--png", type=Path, metavar="DIR", help="also write every chart as .png and .svg")
    p.add_argument("--title", help="of the page (default: what was run on what)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.core.progress import Progress
    from bench.show import page, report, training_page

    if missing := page.unavailable():
        raise CannotGoOn(missing)
    if trained := training_page.runs_in(args.runs):
        return of_training(args, trained)
    with Progress() as line:
        runs = report.read_runs(args.runs)
        line.tell(f"the page of {cli.several(len(runs), 'run')}, {sum(len(run.records) for run in runs):,} records")
        shown, template = report.page_of(runs, args.title)
        out = args.out or runs[0].folder / "report.html"
        line.tell(f"writing {out}")
        page.write(shown, template, out)
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if args.png:
        print(f"pictures: {page.write_pictures(shown, args.png)} charts in {args.png}")
    return cli.OK


def of_training(args: argparse.Namespace, trained: list[Path]) -> int:
    """Training runs over one another, on a page of their own."""
    from bench.show import page, training_page

    if other := [str(r) for r in args.runs if not training_page.runs_in([r])]:
        raise CannotGoOn(f"{', '.join(other)}: not a training run, as {trained[0]} is; make a page of each", cli.USAGE)
    shown = training_page.Page(trained, args.title)
    out = args.out or trained[0] / "report.html"
    page.write(shown, training_page.TEMPLATE, out)
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    if args.png:
        print(f"pictures: {page.write_pictures(shown, args.png)} charts in {args.png}")
    return cli.OK


if __name__ == "__main__":
    cli.run(main)

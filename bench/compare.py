"""python -m bench.compare BEFORE AFTER: what got faster, slower or wrong between two runs.

python -m bench.compare runs/before runs/after
python -m bench.compare main/ branch/ --fail-on any --threshold 3%
python -m bench.compare runs/before runs/after --html           as a page too: compare.html in AFTER

Each is a run's folder, or a folder with several, which are pooled. A case is the same where layer, pass,
variant, shape, dtype, cache, device and threads are; that its source changed is told. The verdicts:

FASTER, SLOWER  beyond the threshold, and beyond all that runs of the same code show: the 95 % interval of the ratio
                (bootstrap over processes, then rounds), the noise floor of either run, what processes and the A/A
                controls differ by, and what the unchanged variants beside it moved
SAME            the whole interval is within the threshold
UNCLEAR         neither, for the reason given; or the two were measured at other clocks, throttled, or on a busy machine
WRONG, FIXED    right before and not after (wrong, impossible, error, crash, timeout), and the other way round

All processes of a run share its hour. On a machine with neighbours measure several runs a side, in turns, and put each
side's into a folder: one pair of runs tells small changes on quiet machines only.
"""

import argparse
import sys
from pathlib import Path

from bench import cli

EXIT_CODES = (
    "exit codes here: 0 fine, 1 something is SLOWER (with --fail-on slower or any), 2 something became wrong\n"
    "(with --fail-on wrong or any), 3 cannot be compared or written, 64 usage"
)
AT_AFTER = Path()  # --html without a name


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.compare", description=__doc__, epilog=EXIT_CODES)
    p.add_argument("before", type=Path, metavar="BEFORE", help="a run's folder, or a folder of such")
    p.add_argument("after", type=Path, metavar="AFTER")
    p.add_argument("--fail-on", choices=("slower", "wrong", "any"), help="exit code 1 or 2 where this happened")
    p.add_argument(
        "--threshold", type=share, default=0.02, metavar="2%", help="smaller changes do not matter (default 2%%)"
    )
    p.add_argument("--cross-env", action="store_true", help="compare across hardware, driver, power cap, torch, timer")
    p.add_argument(
        "--html",
        nargs="?",
        type=Path,
        const=AT_AFTER,
        metavar="FILE",
        help="also as a page (default AFTER/compare.html)",
    )
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def share(text: str) -> float:
    """0.02 from "2%" or "0.02"."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: 2% or 0.02, more than 0 and less than 100%")
    return value


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from bench.show import comparison, comparison_page

    told, failures = comparison.compared(args.before, args.after, args.threshold, args.cross_env)
    told.print()
    code = comparison.exit_code(told.comparison, args.fail_on)
    out = args.after / "compare.html" if args.html == AT_AFTER else args.html
    for error in filter(None, (failures, comparison_page.write_page(told, out))):
        print(f"error: {error}", file=sys.stderr)
        code = code or comparison.NOT_COMPARABLE
    if args.json:
        cli.print_json(told.document() | {"exit_code": code})
    return code


if __name__ == "__main__":
    cli.run(main)

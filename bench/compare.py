"""python -m bench.compare BEFORE AFTER: what got faster, slower, wrong or lost between two runs.

python -m bench.compare runs/before runs/after
python -m bench.compare main/ branch/ --fail-on any --threshold 3%
python -m bench.compare runs/after --against-history 8 --fail-on slower,wrong
python -m bench.compare runs/before runs/after --html --markdown     as a page (compare.html in AFTER), as a comment

Each is a run's folder, or a folder with several, which are pooled. A case is the same where layer, pass,
variant, shape, dtype, cache, device and threads are; that its source changed is told. The verdicts:

FASTER, SLOWER  beyond the threshold, and beyond all that runs of the same code show: the 95 % interval of the ratio
                (bootstrap over processes, then rounds), the noise floor of either run, what processes and the A/A
                controls differ by, and what the unchanged variants beside it moved
SAME            the whole interval is within the threshold
UNCLEAR         neither, for the reason given; or the two were measured at other clocks, throttled, or on a busy machine
WRONG, FIXED    right before and not after (wrong, impossible, error, crash, timeout), and the other way round
LOST            right before, and after not there, skipped, not timed, or right in less of the contract

`could be seen` is the smallest change that would have been called one. All processes of a run share its hour. On a
machine with neighbours measure several runs a side, in turns, and put each side's into a folder, or compare with the
last runs of the same machine (--against-history): one pair of runs tells small changes on quiet machines only.

Thresholds by layer stand in pyproject.toml where the command runs, or in a file like it (--thresholds FILE):

    [tool.layerbench.thresholds]
    default = "2%"
    attention = "5%"
    "gelu backward" = "10%"
"""

import argparse
from pathlib import Path

from bench import cli
from bench.records import ANY, FAILURES

EXIT_CODES = (
    "exit codes here: 0 fine, 1 something is SLOWER, 2 something became wrong, 4 something is missing, 5 something is\n"
    "UNCLEAR (each with --fail-on; of several the gravest: wrong, missing, slower, unclear), 3 cannot be compared or\n"
    "written, 64 usage"
)
AT_AFTER = Path()  # --html without a name


def parser() -> cli.Parser:
    p = cli.Parser(prog="python -m bench.compare", description=__doc__, epilog=EXIT_CODES)
    p.add_argument("before", type=Path, nargs="?", metavar="BEFORE", help="a run's folder, or a folder of such")
    p.add_argument("after", type=Path, metavar="AFTER", help="another one, which is judged")
    p.add_argument(
        "--against-history",
        type=cli.count,
        metavar="N",
        help="instead of BEFORE the last N runs in --history that were measured under the same conditions",
    )
    p.add_argument("--history", type=Path, default=Path("results"), metavar="DIR", help="(default results)")
    p.add_argument(
        "--fail-on",
        type=failures,
        default=(),
        metavar="WHAT",
        help=f"an exit code where this happened: {', '.join(FAILURES)}, several with commas, or any ({', '.join(ANY)})",
    )
    p.add_argument(
        "--threshold",
        type=share,
        metavar="2%",
        help="smaller changes do not matter (default 2%%, or by --thresholds)",
    )
    p.add_argument("--thresholds", type=Path, metavar="FILE", help="thresholds by layer (default pyproject.toml)")
    p.add_argument("--cross-env", action="store_true", help="compare across hardware, driver, power cap, torch, timer")
    p.add_argument(
        "--html",
        nargs="?",
        type=Path,
        const=AT_AFTER,
        metavar="FILE",
        help="also as a page (default AFTER/compare.html)",
    )
    p.add_argument(
        "--markdown",
        nargs="?",
        type=Path,
        const=AT_AFTER,
        metavar="FILE",
        help="also as a comment for a pull request (default AFTER/compare.md), and added to $GITHUB_STEP_SUMMARY",
    )
    p.add_argument("--json", action="store_true", help="the last line of stdout is one JSON document")
    return p


def share(text: str) -> float:
    """0.02 from "2%" or "0.02"."""
    from bench.records import gate

    try:
        return gate.share(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def failures(text: str) -> tuple[str, ...]:
    """("slower", "wrong") from "slower,wrong"."""
    words = [word for part in text.split(",") for word in (ANY if part == "any" else (part,))]
    for word in words:
        if word not in FAILURES:
            hint = cli.did_you_mean(word, (*FAILURES, "any"))
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(FAILURES)}, any{hint}")
    return tuple(words)


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if (args.before is None) == (args.against_history is None):
        p.error("two folders, BEFORE and AFTER, or one and --against-history N")
    from bench.core.progress import Progress
    from bench.show import comparing

    with Progress():
        return comparing.run(**vars(args))


if __name__ == "__main__":
    cli.run(main)

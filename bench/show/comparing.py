"""`bench.compare`: two sides are compared, and what came out is printed, written and answered as an exit code."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.core.files import cannot_write, write_atomically
from bench.core.progress import tell
from bench.records import gate
from bench.records.gate import Thresholds
from bench.show import comparison, comparison_page
from bench.show.comparison import Verdicts
from bench.show.comparison_markdown import as_markdown
from reference import contract
from reference.models import MODELS

DEFAULT = 0.02
PROJECT = Path("pyproject.toml")
SUMMARY = "GITHUB_STEP_SUMMARY"  # the file that a job's page on GitHub shows
NEXT_TO_AFTER = Path()


def run(
    before: Path | None,
    after: Path,
    against_history: int | None,
    history: Path,
    fail_on: Sequence[str],
    threshold: float | None,
    thresholds: Path | None,
    cross_env: bool,
    html: Path | None,
    markdown: Path | None,
    json: bool,
) -> int:
    limits = thresholds_of(threshold, thresholds)
    if before is None:
        told = comparison.against_history(after, history, against_history or 1, limits)
    else:
        told = comparison.compared(before, after, limits, cross_env)
    tell(f"the table of {cli.several(len(told.changes), 'case')}")
    told.print(fail_on)
    tell("what is written of it")
    code = gate.exit_code(told.found, fail_on)
    errors = [
        told.failures,
        told.same if fail_on else "",  # a gate that looks at one run alone lets everything through
        comparison_page.write_page(told, after / "compare.html" if html == NEXT_TO_AFTER else html, fail_on),
        _write_markdown(told, after / "compare.md" if markdown == NEXT_TO_AFTER else markdown, fail_on),
    ]
    for error in filter(None, errors):
        print(f"error: {error}", file=sys.stderr)
        code = code or gate.NOT_COMPARABLE
    if json:
        cli.print_json(told.document() | {"exit_code": code})
    return code


def thresholds_of(threshold: float | None, file: Path | None) -> Thresholds:
    """By the command line, else by a file, else the default."""
    if threshold is not None:
        return Thresholds(threshold)
    if file is None and not PROJECT.is_file():
        return Thresholds(DEFAULT)
    return gate.read_thresholds(file or PROJECT, DEFAULT, [*contract.layer_names(), *MODELS])


def _write_markdown(told: Verdicts, out: Path | None, fail_on: Sequence[str]) -> str:
    """The comment, where it is wanted; why it could not be written, or nothing."""
    if out is None:
        return ""
    text = as_markdown(told, fail_on)
    try:
        print(f"comment: {write_atomically(out, text)}")
        if summary := os.environ.get(SUMMARY):
            try:
                with open(summary, "a") as file:
                    file.write(text)
            except OSError as error:
                raise cannot_write(Path(summary), error) from error
    except CannotGoOn as error:
        return str(error)
    return ""

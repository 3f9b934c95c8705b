"""What `--resume` goes on with: the command that the run was begun with. What is said anew must not say otherwise."""

import argparse
import contextlib
import io
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import cli
from bench.cli import CannotGoOn
from bench.records import read
from bench.records.scrub import clean

PLACEHOLDERS = ("<path>", "<secret>", "<host>", "<user>")  # what env.json has in place of what is nobody's business
OF_THE_PLACE = (
    "out",
    "resume",
    "pack",
    "prepared",
    "profile",
    "proofs",
)  # options that change nothing that is measured
OF_THE_HOUR = ("json", "seconds", "minutes")  # how long to measure may be another thing each time


def gone_on_with(
    parser: Callable[[], cli.Parser], argv: Sequence[str], folder: Path, kind: str
) -> tuple[argparse.Namespace, list[str]]:
    """(arguments, command line) of a run that goes on in `folder`: those it was begun with, and what `argv` says of
    places and of the time. parser: makes one in which nothing is required. CannotGoOn where `argv` says otherwise of
    anything else, or where what was left out of the recorded command must be said again. A folder that has no run of
    this kind is left to `Run.resume`."""
    said = given(parser(), argv)
    then = recorded(parser, folder, kind)
    if then is None:
        return parser().parse_args(argv), [*argv]
    # What is written down is scrubbed: so must be what it is compared with.
    scrubbed = given(parser(), shlex.split(clean(shlex.join(argv), free_text=True)))
    defaults = vars(parser().parse_args([]))
    free = {*OF_THE_PLACE, *OF_THE_HOUR}
    other = [name for name in said if name not in free and scrubbed.get(name) != then.get(name, defaults.get(name))]
    if other:
        told = "; ".join(f"{name}: {_text(then.get(name))} then, {_text(said[name])} now" for name in other)
        raise CannotGoOn(f"{folder} was begun by another command ({told}): take another --out", cli.USAGE)
    lost = [name for name, value in then.items() if name not in {*said, *free} and _was_scrubbed(value)]
    if lost:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in lost)
        raise CannotGoOn(f"what {names} was is not written down in {folder}: say it again", cli.USAGE)
    kept = {name: value for name, value in then.items() if name not in OF_THE_PLACE}
    return argparse.Namespace(**defaults | kept | said), _command(folder)[1]


def given(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """What a command line says by itself, defaults left out."""
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return vars(parser.parse_args(argv))


def recorded(parser: Callable[[], cli.Parser], folder: Path, kind: str) -> dict[str, Any] | None:
    """What the run in a folder was begun with; None where there is none, or one of another kind. CannotGoOn where this
    version has no such options."""
    if not (folder / read.RECORDS).exists():
        return None
    found, argv = _command(folder)
    if found != f"bench.{kind}":
        return None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return given(parser(), argv)
    except SystemExit:
        told = shlex.join(["python", "-m", found, *argv])
        raise CannotGoOn(f"{folder} was begun by `{told}`, which this version does not know: start a new run") from None


def _command(folder: Path) -> tuple[str, list[str]]:
    """(command, its arguments) as env.json has them."""
    environment = read.read_environment(folder)
    words = shlex.split(environment.get("command") or "")
    if environment.get("schema") not in (None, read.SCHEMA) or words[:2] != ["python", "-m"]:
        return "", []
    return words[2], words[3:]


def _was_scrubbed(value: object) -> bool:
    return any(mark in str(value) for mark in PLACEHOLDERS)


def _text(value: object) -> str:
    return "nothing" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)

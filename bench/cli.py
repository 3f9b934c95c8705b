"""What all command lines share: a parser that helps with typos, exit codes, and plain or rich output.

Nothing heavy is imported here, so that `--help` answers at once.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

OK = 0
FAILED = 1  # something went wrong that is not a verdict on a kernel (disk full, cannot set up)
WRONG = 2  # a variant's result is wrong, or parity with PyTorch failed
CANNOT_RUN = 3  # a variant named explicitly cannot run here
USAGE = 64  # the command line makes no sense (sysexits.h EX_USAGE)
INTERRUPTED = 130  # Ctrl-C

EXIT_CODES = (
    "exit codes: 0 fine, 1 could not go on, 2 a result is wrong, 3 a named variant cannot run here, "
    "64 usage, 130 interrupted"
)


class CannotGoOn(Exception):
    """An error with a message for the user and the exit code that goes with it."""

    def __init__(self, message: str, code: int = FAILED):
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; a wrong option or choice gets a "did you mean"."""

    def __init__(self, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("epilog", EXIT_CODES)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        hint = self._hint(message)
        self.exit(USAGE, f"{self.prog}: {message}{hint}\n")

    def _hint(self, message: str) -> str:
        options = [o for action in self._actions for o in action.option_strings]
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            return did_you_mean(found[1].split("=")[0], options)
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return did_you_mean(found[1], re.findall(r"[\w.\-/]+", found[2]))
        return ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean "attention"?' or nothing."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def choose(word: str, known: Iterable[str], what: str) -> str:
    """`word` where it is known; else a CannotGoOn that says what is."""
    known = list(known)
    if word in known:
        return word
    raise CannotGoOn(f"unknown {what} {word!r}{did_you_mean(word, known)} (known: {', '.join(known)})", USAGE)


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command line's main(); turn the errors a user can act on into one line and an exit code."""
    try:
        sys.exit(main())
    except CannotGoOn as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted; what was measured so far is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `… | head`
        sys.stderr.close()
        sys.exit(OK)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on one line, the last of stdout."""
    print(json.dumps(document, default=str), flush=True)


def say(text: str, quiet: bool = False) -> None:
    """Progress for people: on stderr, so that stdout stays clean for tables and JSON."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)

"""Text that came from elsewhere: made harmless for a terminal, a CSV or a page, and no longer than anybody reads.

Everything here takes time that grows with the length of the text and no faster, whatever the text is.
"""

import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

EVIDENCE = 600  # characters of what a row says of a failure
STORY = 300
READ = 1 << 16  # characters that are looked at to find what is telling
CAUSES = 8  # exceptions that led to one another, at most

# A terminal's escape sequences; the last part of each may be missing, so that nothing is tried twice.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]?)")
# What steers a terminal or the direction of writing, and halves of surrogate pairs, which no file can hold.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")

_ERROR_LINE = re.compile(
    r"(?:fatal |internal |catastrophic )?error\b ?(?:#?\w+ ?)?:|undefined (?:reference|symbol)|^ptxas (?:fatal|error)"
    r"|: cannot open|cannot find -l|LLVM ERROR",
    re.IGNORECASE,
)
_CARET = re.compile(r"^\s*\^+\s*$")


def plain(text: str) -> str:
    """`text` without escape sequences; other control characters and lone surrogates are shown as "\ufffd".

    Line ends of every kind are "\\n", tabs stay.
    """
    return _CONTROL.sub("\ufffd", _BREAK.sub("\n", _SEQUENCE.sub("", text)))


def harmless(document: Any) -> Any:
    """What was read as JSON, with all its text `plain`: a file may hold anything, and terminals show what it says."""
    if isinstance(document, str):
        return document if document.isprintable() else plain(document)
    if isinstance(document, list):
        return [harmless(part) for part in document]
    if isinstance(document, dict):
        return {plain(name): harmless(part) for name, part in document.items()}
    return document


def bounded(text: object, limit: int = EVIDENCE) -> str:
    """`text` made plain, cut after `limit` characters with a word on how long it was. Never raises: an exception
    whose own __str__ fails is told by its type."""
    try:
        said = text if type(text) is str else str(text)
    except Exception as error:
        return f"a {type(text).__name__} whose text cannot be had ({type(error).__name__})"
    short = plain(said[: 4 * limit])
    if len(said) <= 4 * limit and len(short) <= limit:
        return short
    return f"{short[:limit].rstrip()} … ({len(said):,} characters)"


def one_line(text: object, limit: int = EVIDENCE) -> str:
    """`bounded`, with runs of blanks and line ends as one blank."""
    try:
        said = " ".join(str(text)[:READ].split())
    except Exception:
        return bounded(text, limit)
    return bounded(said, limit)


def telling(error: BaseException) -> str:
    """What an exception says, in one line; of a compiler's many lines those that name the cause.

    Compilers print notes before and after: the first lines with "error:" are kept. Triton prints the source, a caret
    under it and then the cause, or leaves that to the exception that led to this one.
    """
    found: list[str] = []
    for cause in _causes(error):
        found = _cause_lines(_text(cause))
        if found:
            break
    return one_line(" ".join(found) if found else " ".join(_text(error).strip().splitlines()[:3]))


def cause_of(error: BaseException) -> str:
    """Its type, and what it tells."""
    return f"{type(error).__name__}: {telling(error)}"


def _text(error: BaseException) -> str:
    try:
        said = str(error)
    except Exception:
        return bounded(error)
    # Of a longer one both ends: the cause stands at either.
    return said if len(said) <= READ else f"{said[: READ // 2]}\n{said[-READ // 2 :]}"


def _causes(error: BaseException) -> Iterable[BaseException]:
    """An exception, the one that led to it, …"""
    cause: BaseException | None = error
    for _ in range(CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _cause_lines(text: str) -> list[str]:
    """The lines of a compiler's message that name the cause; none where it is no such message, or does not say."""
    lines = text.splitlines()
    carets = [i for i, line in enumerate(lines) if _CARET.match(line[:READ])]
    if lines and lines[0].startswith("at ") and carets:
        last = carets[-1]
        below = [line.strip() for line in lines[last + 1 :] if line.strip()]
        source = lines[last - 1].strip() if last > 1 else ""
        return [*below[:3], f"(at {lines[0][3:].rstrip(':')}: {source[:120]})"] if below else []
    wrong = [line.strip() for line in lines if _ERROR_LINE.search(line[:1000])]
    return wrong[:3]


def line_of(error: BaseException, outside: Path | None = None, rather: Callable[[Path], bool] | None = None) -> str:
    """The innermost line of an exception's traceback as " (file.py line 3)"; `outside`: leave out this folder's.
    rather: where it says yes to a file of the traceback, the innermost of those."""
    # Walked by hand: extract_tb reads every frame's source, and a recursion has a thousand of them.
    frames = [(f.f_code.co_filename, number) for f, number in traceback.walk_tb(error.__traceback__)]
    innermost = frames[::-1]
    for name, number in [f for f in innermost if rather and rather(Path(f[0]))] + innermost:
        if outside is None or outside not in Path(name).parents:
            return bounded(f" ({Path(name).name} line {number})", 120)
    return ""

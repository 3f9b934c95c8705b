"""A comparison as a comment for a pull request: the verdict first, then what changed, then all of it, folded."""

from collections.abc import Iterable, Iterator, Sequence

from bench.records.verdicts import Change
from bench.show.comparison import RUNS_LISTED, Verdicts, case_text, run_line, threshold_text, time_cells, why

MOST = 200  # rows of a table; a comment on GitHub holds 65,536 characters
LONGEST = 200  # characters of a cell
CHANGED = ("SLOWER", "FASTER", "WRONG", "FIXED")


def as_markdown(told: Verdicts, fail_on: Sequence[str]) -> str:
    return "\n".join(_lines(told, fail_on)) + "\n"


def _lines(told: Verdicts, fail_on: Sequence[str]) -> Iterator[str]:
    yield f"### {_text(told.headline(fail_on))}"
    yield ""
    for what, runs in (("before", told.before), ("after", told.after)):
        more = f", and {len(runs) - RUNS_LISTED} more" if len(runs) > RUNS_LISTED else ""
        yield f"- {what}: {'; '.join(_text(run_line(run)) for run in runs[:RUNS_LISTED])}{more}"
    if told.same:
        yield f"- **{_text(told.same)}**"
    for key, (old, new) in told.differing.items():
        yield f"- **across environments**: {_text(key)}: {_text(old)} → {_text(new)}"
    yield f"- changes below {threshold_text(told.thresholds)} do not matter"
    changed = [c for c in told.changes if c.verdict in CHANGED]
    if changed:
        yield from _table(changed)
    if gone := told.comparison.lost:
        yield from _listed("lost", [f"{case_text(g.case)}: {g.why}" for g in gone])
    if told.damaged:
        yield from _listed("lines that cannot be read", [str(problem) for problem in told.damaged])
    for what, cases in told.one_sided():
        yield from _listed(what, [case_text(case) for case in cases])
    if lines := told.power_lines():
        yield from _listed("what change would have been seen", lines)
    if len(told.changes) > len(changed):
        yield ""
        yield f"<details><summary>all {len(told.changes)} cases</summary>"
        yield from _table(told.changes)
        yield ""
        yield "</details>"


def _table(changes: Sequence[Change]) -> Iterator[str]:
    yield ""
    yield "| case | before | after | change [95 %] | verdict | why |"
    yield "|---|--:|--:|--:|---|---|"
    for c in changes[:MOST]:
        yield f"| {' | '.join(_text(cell) for cell in (case_text(c.case), *time_cells(c), c.verdict, why(c)))} |"
    if len(changes) > MOST:
        yield ""
        yield f"and {len(changes) - MOST} more"


def _listed(what: str, lines: Sequence[str]) -> Iterator[str]:
    yield ""
    yield f"<details><summary>{what} ({len(lines)})</summary>"
    yield ""
    yield from (f"- {_text(line)}" for line in lines[:MOST])
    if len(lines) > MOST:
        yield f"- and {len(lines) - MOST} more"
    yield ""
    yield "</details>"


def _text(value: object) -> str:
    """One line that no Markdown and no HTML is read from: evidence is what a kernel's author wrote."""
    words = " ".join(str(value).split())
    words = words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
    return _escaped(words, "\\`*_[]<>&|~#@")


def _escaped(text: str, special: Iterable[str]) -> str:
    return "".join(f"&#{ord(letter)};" if letter in special else letter for letter in text)

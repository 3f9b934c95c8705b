"""The table of docs/judge.md: each cheat and accident of tests/evil*, with the check that catches it.

python tools/cheats.py          write the table anew between its two marks
python tools/cheats.py --check  only say whether it is what the files say; exit code 1 where it is not
"""

import argparse
import ast
import sys
from dataclasses import dataclass, field
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
EVIL, EVIL_TRAINING = HOME / "tests" / "evil", HOME / "tests" / "evil_training"
EVIL_STEPS, EVIL_RANKS, EVIL_TEXTS = (HOME / "tests" / f"evil_{what}" for what in ("steps", "ranks", "texts"))
FOLDERS = (EVIL, EVIL_TRAINING, EVIL_STEPS, EVIL_RANKS, EVIL_TEXTS)
PAGE = HOME / "docs" / "judge.md"
BEGIN, END = "<!-- cheats -->", "<!-- end of cheats -->"
WHERE = {
    "proof": "proof",
    "timing": "timing",
    "proof timing": "proof or timing",
    "session": "session",
    "training": "`bench.train`",
    "ranks": "`bench.train` on two ranks",
    "step": "`bench.e2e`",
    "text": "`bench.generate`",
}


@dataclass(frozen=True)
class Cheat:
    """What a file of tests/evil says of itself, by its constants."""

    path: Path
    story: str
    caught_by: tuple[str, ...]  # names of checks or statuses, any of which may be the first to see it
    caught_in: tuple[str, ...] = ("proof",)  # proof, timing, both (either may), session, training, …
    shape: dict[str, object] = field(default_factory=dict)  # entries of the timed shape that are its own
    threads: int = 0  # it was given; 0: as all others
    slow: bool = False  # one more of a kind: tried by `make test-all`
    at_times: bool = False  # it cheats: a race that looks only when it does not misses it

    @property
    def name(self) -> str:
        """`torch.zeros` of `residual` is "residual torch.zeros"."""
        backend, layer = self.path.parts[-3:-1]
        return f"{layer} {backend}.{self.path.stem}"


def read(path: Path) -> Cheat:
    """A cheat from its source. ValueError where it does not say what catches it, or where."""
    tree = ast.parse(path.read_text())
    said = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("CAUGHT_BY", "CAUGHT_IN", "SHAPE", "THREADS", "SLOW", "AT_TIMES"):
                said[name] = ast.literal_eval(node.value)
    if not said.get("CAUGHT_BY"):
        raise ValueError(f"{path} does not say what it is caught by")
    where = said.get("CAUGHT_IN", "proof")
    if where not in WHERE:
        raise ValueError(f"{path}: CAUGHT_IN is {where!r}, which is none of {', '.join(WHERE)}")
    return Cheat(
        path=path,
        story=(ast.get_docstring(tree) or "").partition("\n")[0],
        caught_by=tuple(said["CAUGHT_BY"].split()),
        caught_in=tuple(where.split()),
        shape=said.get("SHAPE", {}),
        threads=said.get("THREADS", 0),
        slow=said.get("SLOW", False),
        at_times=said.get("AT_TIMES", False),
    )


def cheats() -> list[Cheat]:
    """All of them, by layer and name."""
    return sorted((read(path) for folder in FOLDERS for path in folder.glob("*/*/*.py")), key=lambda c: c.name)


def table(found: list[Cheat]) -> str:
    """Markdown: one line a cheat."""
    lines = ["| cheat or accident | what it does | caught by | where |", "|---|---|---|---|"]
    for cheat in found:
        story = cheat.story.replace("|", "\\|")
        checks = ", ".join(f"`{name}`" for name in cheat.caught_by)
        lines.append(f"| {cheat.name} | {story} | {checks} | {WHERE[' '.join(cheat.caught_in)]} |")
    return "\n".join(lines)


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with what stands between two marks replaced. ValueError where it has no such marks."""
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the page has no {begin} and {end} for the table to stand between")
    return f"{before}{begin}\n{text}\n{end}{after}"


def with_table(page: str, found: list[Cheat]) -> str:
    """The page with the table between its marks replaced. ValueError where it has no such marks."""
    return between(page, BEGIN, END, f"{len(found)} cheats and accidents:\n\n{table(found)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    old = PAGE.read_text()
    new = with_table(old, cheats())
    if args.check:
        if new != old:
            print(f"{PAGE.relative_to(HOME)} is not what tests/evil says: python tools/cheats.py", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

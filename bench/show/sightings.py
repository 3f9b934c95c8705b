"""What several runs on one page say of the same thing: the newest counts, and what differs is told."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from bench.records.read import Loaded
from bench.records.record import Record
from bench.show.points import grouped
from bench.show.texts import duration

Key = TypeVar("Key", bound=Hashable)
MOST_NAMED = 3  # variants whose times are told of another run


@dataclass
class Sighting:
    """One run's rows of a case."""

    run: Loaded
    rows: list[Record]

    @property
    def utc(self) -> str:
        return max((r.get("utc") or "" for r in self.rows), default="")

    @property
    def named(self) -> str:
        """suite/e2e, 2026-11-21, commit 7a733f7."""
        folder = self.run.folder
        day = str(self.run.environment.get("started", ""))[:10] or self.utc[:10]
        commit = commit_of(self.run)
        return ", ".join(filter(None, (f"{folder.parent.name}/{folder.name}", day, commit and f"commit {commit}")))


def of(rows: Iterable[tuple[Loaded, Record]], key: Callable[[Loaded, Record], Key]) -> dict[Key, list[Sighting]]:
    """Of each key the runs that have rows of it, the newest first."""
    found: dict[Key, list[Sighting]] = {}
    for k, group in grouped(rows, lambda x: key(*x)).items():
        by_run = grouped(group, lambda x: id(x[0]))
        seen = [Sighting(pairs[0][0], [r for _, r in pairs]) for pairs in by_run.values()]
        found[k] = sorted(seen, key=lambda s: s.utc, reverse=True)
    return found


def commit_of(run: Loaded) -> str:
    """Its first digits, with a + where there were changes."""
    git = run.environment.get("git") or {}
    return (git.get("commit") or "")[:7] + ("+" if git.get("dirty") and git.get("commit") else "")


def differing(seen: list[Sighting], at: int) -> list[str]:
    """A sentence for each other run that has numbers of the same variants: which, and what is not the same in both."""
    here, told = seen[at], []
    for number, there in enumerate(seen):
        times = _times(there)
        common = [v for v in _times(here) if v in times]
        if number == at or not common:
            continue
        named = ", ".join(f"{v} {duration(times[v])}" for v in common[:MOST_NAMED])
        counts = "this one is older, the summary takes that one" if number < at else "the summary takes this newer one"
        told.append(f"{there.named} has other numbers of it ({named}); {counts}. Not the same: {unlike(here, there)}.")
    return told


def _times(s: Sighting) -> dict[str, float]:
    return {r["variant"]: r["median_s"] for r in s.rows if r.get("median_s") and r.get("cache") != "warm"}


def unlike(one: Sighting, other: Sighting) -> str:
    """What of code, machine and settings differs; where nothing of it does, that they are two runs, which on a shared
    machine is enough."""
    sides = [_facts(s) for s in (one, other)]
    found = [name for name in sides[0] if sides[0][name] != sides[1][name]]
    return ", ".join(found) or "nothing that was written down but the time of day, and what else the machine did then"


def _facts(s: Sighting) -> dict[str, object]:
    environment, times = s.run.environment, _times(s)
    return {
        "the day": (str(environment.get("started", "")) or s.utc)[:10],
        "the commit": commit_of(s.run),
        "the variants' sources": sorted((r["variant"], r.get("source_hash")) for r in s.rows if r["variant"] in times),
        "the kernels chosen for the step": [k for r in s.rows if isinstance(k := r.get("kernels"), dict)],
        "versions": environment.get("versions"),
        "threads": [environment.get("threads"), sorted({r.get("threads_asked") or 0 for r in s.rows})],
        "settings of libraries": environment.get("settings") or [],
        "the machine": [environment.get("cpu"), environment.get("gpus")],
    }

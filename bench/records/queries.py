"""Who is fastest at what: of each case the fastest kernel of this project, and the fastest PyTorch entry."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass
class Race:
    """One layer, pass, shape and dtype: its right rows with cold caches, the fastest first."""

    rows: list[Record]

    @property
    def first(self) -> Record:
        return self.rows[0]

    @property
    def own(self) -> Record | None:
        return next((r for r in self.rows if not r["variant"].startswith("torch.")), None)

    @property
    def torch(self) -> Record | None:
        return next((r for r in self.rows if r["variant"].startswith("torch.")), None)


def races(records: Iterable[Record]) -> list[Race]:
    """The races of some runs, in the order in which they were run. The A/A control's second entry takes no part."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        if r["status"] == "ok" and r.get("cache") == "cold" and r.get("median_s") and not r.get("control"):
            key = (r["layer"], r.get("shape_name") or "", r["phase"], r["dtype"], str(r.get("shape")))
            found.setdefault(key, []).append(r)
    return [Race(sorted(rows, key=lambda r: r["median_s"])) for rows in found.values()]

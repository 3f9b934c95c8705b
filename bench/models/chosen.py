"""Kernels that were chosen beforehand: the kernels.json that a run of `bench.e2e` writes, and `--kernels FILE.json`.

    {"schema": 1, "chip": "NVIDIA H200", "utc": "2026-11-29T…", "run": "e2e", "model": "gpt2-124m", "dtype": "bf16",
     "B": 64, "T": 1024, "kernels": {"matmul/qkv forward": {"variant": "triton.tiled", "source": "0123456789abcdef"}}}

A choice may be old, and never wrong: a call whose variant has another source now, or cannot run here, is raced anew,
and what is taken the gate still judges.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from bench.cli import USAGE, CannotGoOn, cannot, no_such
from bench.core.files import write_atomically
from bench.core.variants import Variant
from bench.models import CallId
from bench.models.choose import Spec

SCHEMA = 1
FILE = "kernels.json"


@dataclass(frozen=True)
class Chosen:
    """By call, as messages name it: (variant, hash of its source). The other fields say where and when."""

    kernels: dict[str, tuple[str, str]]
    chip: str
    utc: str
    run: str
    model: str
    dtype: str
    B: int
    T: int
    file: str = ""  # where it was read from, as it was named

    def __str__(self) -> str:
        name = Path(self.file).name if Path(self.file).is_absolute() else self.file
        sizes = f"{self.model} {self.dtype}, B={self.B} T={self.T}"
        return f"chosen beforehand: {name}, on {self.chip}, {self.utc[:16]}, run {self.run}, {sizes}"

    def stale(self, id: CallId, variants: list[Variant]) -> str:
        """Why a call cannot be served as it was chosen, or ""."""
        if str(id) not in self.kernels:
            return "not in it"
        name, source = self.kernels[str(id)]
        found = next((v for v in variants if (v.layer, v.name) == (id.layer, name)), None)
        if found is None:
            return f"there is no {name} any more"
        return "" if found.source_hash() == source else f"{name} has another source now"


def read(file: Path) -> Chosen:
    """CannotGoOn where it is no such file."""
    if not file.is_file():
        raise CannotGoOn(no_such(file, "file"))
    try:
        document = json.loads(file.read_text())
    except OSError as error:
        raise CannotGoOn(cannot(error), USAGE) from error
    except (ValueError, RecursionError) as error:
        raise CannotGoOn(f"{file} is no choice of kernels: {error}", USAGE) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise CannotGoOn(f"{file} is no choice of kernels of schema {SCHEMA} (bench.e2e writes one: {FILE})", USAGE)
    kernels, texts, sizes = document.get("kernels"), ("chip", "utc", "run", "model", "dtype"), ("B", "T")
    if not isinstance(kernels, dict) or not all(map(_is_entry, kernels.values())):
        raise CannotGoOn(f"{file}: kernels must give a variant and a source for each call", USAGE)
    for names, kind in ((texts, str), (sizes, int)):
        if wrong := [name for name in names if not isinstance(document.get(name), kind)]:
            raise CannotGoOn(f"{file}: {wrong[0]} is missing, or of another kind", USAGE)
    served = {call: (entry["variant"], entry["source"]) for call, entry in kernels.items()}
    return Chosen(served, **{name: document[name] for name in (*texts, *sizes)}, file=str(file))


@dataclass
class Candidates:
    """Who may serve each call, and which earlier choice narrowed that down."""

    pool: dict[CallId, list[Variant]]
    chosen: Chosen | None = None
    stale: dict[CallId, str] = field(default_factory=dict)  # why a call is not served as it was chosen

    def __str__(self) -> str:
        """What a row must say of an earlier choice; "" where there is none."""
        if self.chosen is None:
            return ""
        by_reason: dict[str, list[str]] = {}
        for id, why in self.stale.items():
            by_reason.setdefault(why, []).append(str(id))
        anew = "; ".join(f"{', '.join(ids)}: {why}" for why, ids in by_reason.items())
        return f"{self.chosen}" + (f"; not used for {anew}" if anew else "")

    def told(self, chip: str) -> str:
        """The same, on `chip`."""
        return f"{self}; here it is {chip}" if self.chosen and chip != self.chosen.chip else str(self)


def narrowed(
    pool: dict[CallId, list[Variant]],
    spec: Spec,
    variants: list[Variant],
    why_not: Callable[[CallId, Variant], str | None],
) -> Candidates:
    """The candidates, of which an earlier choice leaves one a call where it still holds and `--kernels` names no other.

    why_not: why a variant cannot serve a call here. CannotGoOn for a file that is no choice.
    """
    found = Candidates(dict(pool))
    if spec.chosen is None:
        return found
    found.chosen = before = read(spec.chosen)
    for id in [id for id in pool if not spec.override(id)]:
        if why := before.stale(id, variants):
            found.stale[id] = why
            continue
        name, _ = before.kernels[str(id)]
        variant = next(v for v in variants if (v.layer, v.name) == (id.layer, name))
        if why := why_not(id, variant) or "":
            found.stale[id] = why
        else:
            found.pool[id] = [variant]
    return found


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("variant", "source"))


def write(
    folder: Path, choice: Mapping[CallId, Variant], *, chip: str, run: str, model: str, dtype: str, B: int, T: int
) -> Path:
    """kernels.json of a run, chosen now."""
    utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = dict(schema=SCHEMA, chip=chip, utc=utc, run=run, model=model, dtype=dtype, B=B, T=T)
    kernels = {str(id): {"variant": v.name, "source": v.source_hash()} for id, v in choice.items()}
    return write_atomically(folder / FILE, json.dumps({**about, "kernels": kernels}, indent=1) + "\n")

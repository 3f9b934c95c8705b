"""The yards of earlier runs, kept on disk: how far honest arithmetic is off is the same for the same case and rules."""

import contextlib
import functools
import hashlib
import inspect
import json
import os
import threading
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.core import files
from bench.core.case import Case
from bench.core.variants import Variant
from bench.machine import facts
from bench.trial.accuracy import Limits, Size
from kernels import cache_dir
from reference import contract

KEPT = 4096  # yards kept on disk, at most
_YARDS = threading.RLock()  # on disk, and what is known of them


def _file(case: Case) -> Path:
    return cache_dir() / "yards" / f"{case.layer}.jsonl"


def key_of(case: Case, yardstick: Variant | None, device: str) -> str:
    """Of all that a yard depends on."""
    parts = (
        *(case.layer, case.phase, case.shape, case.edit, case.seed),
        *(torch.__version__, torch.backends.cpu.get_cpu_capability(), device),
        *facts.library_settings(),
        *(_source_of(yardstick) if yardstick else None, _sources()),
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _source_of(yardstick: Variant) -> str:
    """Its hash, worked out once: some hundred cases ask for it, and what is loaded here is loaded once, too."""
    return yardstick.source_hash()


@functools.cache
def _sources() -> str:
    """Hash of what defines truths and yards: the rules, how cases are drawn and cut, the formulas."""
    digest, room = hashlib.sha256(), Path(__file__).parent
    for path in (
        *(room / name for name in ("truth.py", "accuracy.py", "cuts.py")),
        Path(inspect.getfile(Case)),
        *sorted(Path(contract.__file__).parent.glob("*.py")),
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class _Read:
    """What a file was found to hold, and how far it was read."""

    inode: int
    end: int = 0
    entries: dict[str, Any] = field(default_factory=dict)


_READ: dict[Path, _Read] = {}


def _entries(file: Path) -> dict[str, Any]:
    """What a file holds, a line an entry; of one that grew what is new is read. What is no entry is left out."""
    try:
        with file.open("rb") as lines:
            found = os.fstat(lines.fileno())
            read = _READ.get(file)
            if read is None or read.inode != found.st_ino or read.end > found.st_size:
                read = _READ[file] = _Read(found.st_ino)
            lines.seek(read.end)
            whole, _, _ = lines.read(found.st_size - read.end).rpartition(b"\n")
    except OSError:
        return {}
    read.end += len(whole) + bool(whole)
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            key, entry = json.loads(line)
            read.entries[key] = entry
    return read.entries


def recalled(case: Case, yardstick: Variant | None, device: str, outputs: int) -> list[Limits] | None:
    """What an earlier run found of so many outputs, or None; an entry that is not whole counts as none."""
    with _YARDS:
        entry = _entries(_file(case)).get(key_of(case, yardstick, device))
    try:
        found = [_limits(one) for one in entry or []]
    except (TypeError, ValueError):
        return None
    return found if len(found) == outputs else None


def _limits(entry: Any) -> Limits:
    """From what `astuple` makes of it."""
    noise, size, formula, beside, lean, spans = entry
    honest = Size(*(float(x) for x in size))
    return Limits(float(noise), honest, float(formula), float(beside), float(lean), tuple(_limits(s) for s in spans))


def remember(case: Case, yardstick: Variant | None, device: str, found: list[Limits]) -> None:
    """Keep what was found for later runs. A cache that cannot be written costs time, not the run."""
    entry = [astuple(limits) for limits in found]
    key = key_of(case, yardstick, device)
    with _YARDS, contextlib.suppress(OSError):
        file = _file(case)
        entries = _entries(file)
        if len(entries) >= KEPT:  # half of them go, so that a file is seldom written anew
            newest = [*list(entries.items())[-(KEPT // 2) :], (key, entry)]
            files.put(file, b"".join(_line(*line) for line in newest))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        # One write at the end of the file: several processes have their lines there whole.
        with file.open("ab", buffering=0) as lines:
            lines.write(_line(key, entry))


def _line(key: str, entry: object) -> bytes:
    return json.dumps([key, entry]).encode() + b"\n"

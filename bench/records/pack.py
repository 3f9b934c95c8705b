"""A folder of runs in a few archives of limited size, to take home from another machine, at any moment whole."""

import contextlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench import cli
from bench.records import PACK_BYTES, PACK_FILES

GROUPS = ("suite", "smoke", "e2e", "time", "check", "proofs", "sanitize")  # the most important first
OURS = re.compile(rf"({'|'.join(GROUPS)})-[0-9]+\.tar\.gz(\.part)?")  # no other file is touched
HEADER_BYTES = 1024  # of a file in an archive, at most
TRAILER_BYTES = 4096  # of an archive
MAKING = ".packing"  # beside pack/: what is half made is never in it

Seen = tuple[int, int]  # a file's size and time of change


@dataclass
class Pack:
    """DIR/pack/*.tar.gz, or in another folder: all of DIR in a few files of limited size, by group, the most important
    first.

    `update` makes anew what has changed; between any two of its steps, and so also where the process is ended in one,
    every archive there is whole and within the limits. `tar xzf` of each in one place puts the folder together again.
    """

    out: Path
    elsewhere: Path | None = None
    seen: dict[Path, Seen] = field(default_factory=dict)  # as they were packed or measured
    sizes: dict[Path, int] = field(default_factory=dict)  # compressed
    made: dict[str, list[tuple[Path, Seen]]] = field(default_factory=dict)  # what is in each archive
    left_out: set[Path] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.elsewhere or self.out / "pack"

    @property
    def making(self) -> Path:
        """Where archives are made, to be moved in one step: on the same file system."""
        beside = self.out.stat().st_dev == self.folder.stat().st_dev
        return self.out / MAKING if beside else self.folder

    def update(self) -> list[Path]:
        """Pack what has changed; the archives. What does not fit is named on stderr, once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        bins, left_out = self._bins()
        wanted = {f"{name}.tar.gz": files for name, files in bins}
        for old in self.folder.iterdir():
            if old.name not in wanted and OURS.fullmatch(old.name):
                old.unlink()
                self.made.pop(old.name, None)
        # A file that moves on to a later archive of its group is in that one before it leaves the earlier.
        for name, files in reversed(wanted.items()):
            content = [(f, self.seen[f]) for f in files]
            if self.made.get(name) != content or not (self.folder / name).exists():
                self._make(name, files)
                self.made[name] = content
        for file in left_out:
            if file not in self.left_out:
                cli.say(f"not packed, too large: {file.relative_to(self.out)}")
        self.left_out |= set(left_out)
        return sorted(self.folder / name for name in wanted)

    def _bins(self) -> tuple[list[tuple[str, list[Path]]], list[Path]]:
        """The archives' names and files, and what does not fit."""
        bins: list[tuple[str, list[Path]]] = []
        left_out: list[Path] = []
        for group, files in by_group(self.out).items():
            room, number = 0, 0
            for file in files:
                try:
                    size = self._compressed(file) + HEADER_BYTES
                except FileNotFoundError:  # a piece under way had it for a moment
                    continue
                full = number == 0 or size > room
                if size > PACK_BYTES - TRAILER_BYTES or (full and len(bins) == PACK_FILES):
                    left_out.append(file)
                    continue
                if full:
                    number += 1
                    bins.append((f"{group}-{number}", []))
                    room = PACK_BYTES - TRAILER_BYTES
                bins[-1][1].append(file)
                room -= size
        return bins, left_out

    def _compressed(self, file: Path) -> int:
        """Bytes; compressed alone a file is hardly smaller than in the archive."""
        now = file.stat()
        seen = now.st_size, now.st_mtime_ns
        if self.seen.get(file) != seen:
            self.seen[file], self.sizes[file] = seen, len(zlib.compress(file.read_bytes(), 6))
        return self.sizes[file]

    def _make(self, name: str, files: Iterable[Path]) -> None:
        partial = self.making / f"{name}.part"
        partial.parent.mkdir(exist_ok=True)
        with tarfile.open(partial, mode="w:gz", compresslevel=6) as archive:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    archive.add(file, file.relative_to(self.out))
        os.replace(partial, self.folder / name)


def by_group(out: Path) -> dict[str, list[Path]]:
    """All files of a suite's folder: its own, then those of each kind of piece."""
    found: dict[str, list[Path]] = {name: [] for name in GROUPS}
    for file in sorted(out.rglob("*")):
        parts = file.relative_to(out).parts
        if parts[0] not in ("pack", MAKING) and file.is_file() and not file.name.startswith("."):
            top = parts[0].partition("-")[0] if len(parts) > 1 else "suite"
            found[top if top in found else "suite"].append(file)
    return {name: files for name, files in found.items() if files}

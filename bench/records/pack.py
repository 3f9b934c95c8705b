"""A folder of runs in a few archives of limited size, to take home from another machine."""

import tarfile
import zlib
from pathlib import Path

from bench import cli
from bench.records import PACK_BYTES, PACK_FILES

# --- taking it home ---


def pack(out: Path) -> list[Path]:
    """DIR/pack/*.tar.gz: the whole folder in a few files of limited size, by stage, the most important first.

    What does not fit is named on stderr. `tar xzf` of each in one place puts the folder together again.
    """
    folder = out / "pack"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.tar.gz"):
        old.unlink()
    bins: list[tuple[str, list[Path]]] = []
    left_out: list[Path] = []
    room = 0
    for stage, files in by_stage(out).items():
        fresh = True
        for file in files:
            # Compressed alone a file is hardly smaller than in the archive; headers come on top.
            size = len(zlib.compress(file.read_bytes(), 6)) + 1024
            if size > PACK_BYTES or ((fresh or size > room) and len(bins) == PACK_FILES):
                left_out.append(file)
                continue
            if fresh or size > room:
                bins.append((stage, []))
                fresh, room = False, PACK_BYTES - 4096
            bins[-1][1].append(file)
            room -= size
    packed = []
    for number, (stage, files) in enumerate(bins, start=1):
        packed.append(folder / f"{number}-{stage}.tar.gz")
        with tarfile.open(packed[-1], "w:gz", compresslevel=6) as archive:
            for file in files:
                archive.add(file, file.relative_to(out))
    for file in left_out:
        cli.say(f"not packed, too large: {file.relative_to(out)}")
    cli.say(f"packed: {folder}, {len(packed)} files, {sum(p.stat().st_size for p in packed) / 1e6:.1f} MB")
    return packed


def by_stage(out: Path) -> dict[str, list[Path]]:
    """All files of a suite's folder: its own, then those of each stage, the small ones first."""
    found: dict[str, list[Path]] = {name: [] for name in ("suite", "e2e", "time", "check", "sanitize")}
    for file in sorted(out.rglob("*"), key=lambda f: f.stat().st_size):
        if file.is_file() and file.parent != out / "pack":
            top = file.relative_to(out).parts[0].partition("-")[0]
            found[top if top in found else "suite"].append(file)
    return {name: files for name, files in found.items() if files}

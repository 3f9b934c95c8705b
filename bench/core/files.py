"""Files written whole or not at all, what is remembered in them, and folders tried before anything is measured."""

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bench.cli import CannotGoOn
from kernels import cache_dir


class DiskFull(CannotGoOn):
    """No space is left; what was written before is whole."""


# --- files ---


def write_atomically(file: Path, text: str) -> Path:
    """Write `file` whole or not at all, its folder made where there is none. Raises CannotGoOn where it cannot be
    written, DiskFull where there is no space; the old file then stays."""
    try:
        put(file, text.encode(errors="replace"))  # half of a surrogate pair is no reason to lose the rest
    except OSError as error:
        raise cannot_write(file, error) from error
    return file


def put(file: Path, content: bytes) -> None:
    """`write_atomically` for bytes. Nobody ever sees half of it, also where two processes write it at once.

    Raises OSError, for a caller that has words of its own, or none.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and not file.is_file():  # /dev/stdout: a rename would put a file in its place
        file.write_bytes(content)
        return
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as temporary:
            temporary.write(content)
            temporary.flush()
            os.fsync(temporary.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(folder: Path) -> None:
    """A folder to write to, made and tried before anything is measured for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CannotGoOn(f"cannot write to {folder} as a folder: {_in_the_way(folder)}; choose another") from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(folder, error) from error


def _in_the_way(folder: Path) -> str:
    path = next(p for p in (*reversed(folder.parents), folder) if os.path.lexists(p) and not p.is_dir())
    return f"{path} is {'a link that leads nowhere' if path.is_symlink() and not path.exists() else 'a file'}"


def need_cache() -> None:
    """CannotGoOn where the cache, which builds need, cannot be written to."""
    folder = cache_dir()
    try:
        make_folder(folder)
    except CannotGoOn as error:
        raise CannotGoOn(f"{error}: builds are kept there; set LAYERBENCH_CACHE to another folder") from error


def cannot_write(path: Path, error: OSError) -> CannotGoOn:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CannotGoOn(f"cannot write {path}: {error.strerror}")
    return DiskFull(f"no space left to write {path} ({error.strerror}). Everything written before is kept: make room")


# --- what is remembered from run to run ---


def recall(file: Path) -> dict[str, Any]:
    """The entries of a JSON file of the cache, by key. A file that is missing or damaged counts as empty."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(file: Path, entries: Mapping[str, object]) -> None:
    """Add entries to a JSON file of the cache, beside what other processes wrote meanwhile. Raises OSError."""
    put(file, json.dumps({**recall(file), **entries}, indent=1).encode())

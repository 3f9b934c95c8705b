"""Files and lines written whole or not at all, what is remembered in them, folders tried before measuring."""

import contextlib
import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bench.cli import CannotGoOn, way_out
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
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a write
            error.filename = str(file)
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
        return CannotGoOn(f"cannot write {path}: {error.strerror}{way_out(error)}")
    return DiskFull(f"no space left to write {path} ({error.strerror}). Everything written before is kept: make room")


# --- lines, one after the other ---

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # what a file system says that has none


class Lines:
    """A file that this process alone appends lines to, until `close` or its own end. Raises CannotGoOn where another
    one does, or nothing can be written."""

    def __init__(self, file: Path, keep: bool = False):
        """keep: all that is in it is kept in memory as well, for `restore`."""
        self.file = file
        try:
            self.handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(file, error) from error
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.handle)
            raise CannotGoOn(f"another run is writing to {file.parent}: wait, or choose another --out") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        self.kept = bytearray(os.pread(self.handle, self.size, 0)) if keep else None

    def restore(self) -> bool:
        """Put back what this process found and wrote there, if somebody else changed it since; whether it did. Whoever
        replaced the file by another one has that taken away."""
        here = os.fstat(self.handle)
        if self.kept is None or not stat.S_ISREG(here.st_mode):
            return False
        there = os.stat(self.file) if self.file.exists() else None
        same = there is not None and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
        if same and here.st_size == len(self.kept) and os.pread(self.handle, here.st_size, 0) == self.kept:
            return False
        put(self.file, bytes(self.kept))
        os.close(self.handle)
        self.handle = os.open(self.file, os.O_RDWR | os.O_APPEND)
        with contextlib.suppress(OSError):
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self.handle).st_size

    def end_half_a_line(self) -> None:
        """Of a process that was killed: so that what follows is whole."""
        if self.size and os.pread(self.handle, 1, self.size - 1) != b"\n":
            self.write(b"")

    def write(self, line: bytes, force: bool = True) -> None:
        """Append a line whole, or not at all. force: it is on disk afterwards. Raises DiskFull or CannotGoOn."""
        size = self.size
        try:
            rest = memoryview(line + b"\n")
            while rest:
                rest = rest[os.write(self.handle, rest) :]
            if force:
                os.fsync(self.handle)
            if self.kept is not None:
                self.kept += line + b"\n"
        except OSError as error:
            with contextlib.suppress(OSError):  # cutting needs no space: without it half a line would stay
                os.ftruncate(self.handle, size)
            raise cannot_write(self.file, error) from error

    def force(self) -> None:
        """All of it to disk, whatever happens to the machine."""
        try:
            os.fsync(self.handle)
        except OSError as error:
            raise cannot_write(self.file, error) from error

    def close(self) -> None:
        """Let others write to it."""
        os.close(self.handle)


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

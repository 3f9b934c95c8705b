"""Files written whole or not at all, and folders tried before anything is measured for them."""

import errno
import os
import tempfile
from functools import cache
from pathlib import Path

from bench.cli import CannotGoOn
from bench.records.read import RECORDS, read_environment
from kernels import cache_dir

# --- files ---


def write_atomically(file: Path, text: str) -> Path:
    """Write `file` whole or not at all, its folder made where there is none. Raises CannotGoOn when the disk is full;
    the old file then stays."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # /dev/stdout: a rename would put a file in its place
            file.write_text(text)
            return file
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "w") as temporary:
                temporary.write(text)
                temporary.flush()
                os.fsync(temporary.fileno())
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private
            os.replace(name, file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(file, error) from error
    return file


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(folder: Path) -> None:
    """A folder to write to, made and tried before anything is measured for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(folder, error) from error


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
    told = f"no space left to write {path} ({error.strerror}). Everything written before is kept: make room"
    run = (path.parent / RECORDS).exists() and read_environment(path.parent).get("kind") == "layer"
    return CannotGoOn(f"{told}, then go on with --resume {path.parent}" if run else told)

"""Variants: kernels/<backend>/<layer>/<variant>.py. A file's path is its name; nothing is registered by hand."""

import os
from pathlib import Path


class Unavailable(RuntimeError):
    """This machine cannot run a variant; the message says what is missing and how to get it. Or it does not have what a
    case asks for, then in two or three words ("grouped queries")."""


def cache_dir() -> Path:
    """Where builds and ceilings are kept: $LAYERBENCH_CACHE, or layerbench/ in the user's cache folder."""
    if root := os.environ.get("LAYERBENCH_CACHE"):
        return Path(root)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if home.startswith("~"):
        raise OSError("there is no home folder for the cache: set LAYERBENCH_CACHE to a folder")
    return Path(home) / "layerbench"


def put(file: Path, content: bytes) -> None:
    """Write a file of the cache whole or not at all: two processes may make the same one at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f"{file.suffix}.{os.getpid()}.part")
    partial.write_bytes(content)
    os.replace(partial, file)

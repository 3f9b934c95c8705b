"""Variants: kernels/<backend>/<layer>/<variant>.py. A file's path is its name; nothing is registered by hand."""

import os
from pathlib import Path


class Unavailable(RuntimeError):
    """This machine cannot run a variant; the message says what is missing and how to get it."""


def cache_dir() -> Path:
    """Where builds and ceilings are kept: $LAYERBENCH_CACHE, or layerbench/ in the user's cache folder."""
    if root := os.environ.get("LAYERBENCH_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "layerbench"

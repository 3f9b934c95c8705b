"""NVIDIA's own packages, for what is held against them: installed once into the cache, and nowhere else.

`make test-all` uses them, several hundred megabytes; a test is skipped, with the reason, where they cannot be had.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels import cache_dir

PINNED = {  # what torch 2.11 brings, and the frontend that the variants were written for
    "nvidia-cublas": "13.1.0.3",
    "nvidia-cudnn-cu13": "9.19.0.56",
    "nvidia-cudnn-frontend": "1.32.0",
}


def folder(name: str) -> Path:
    """Where a package is, installed if it was not. Skips the test where that cannot be done."""
    python = f"{sys.version_info.major}{sys.version_info.minor}"
    there = cache_dir() / "packages" / f"{name}-{PINNED[name]}-cp{python}"
    if not there.exists():
        partial = there.with_suffix(".part")
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-cache-dir", "--upgrade"]
        done = subprocess.run(
            [*command, "--target", str(partial), f"{name}=={PINNED[name]}"],
            capture_output=True,
            text=True,
            timeout=1800,
        )
        if done.returncode:
            pytest.skip(f"{name} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        partial.rename(there)
    return there


def library(name: str, pattern: str) -> str:
    """A shared library of a package."""
    return str(next(iter(sorted(folder(name).rglob(pattern)))))

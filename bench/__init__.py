"""Layerbench: its commands, one file each, and the rooms that they stand on, one folder each."""

from pathlib import Path

HOME = Path(__file__).resolve().parent.parent  # the repository

"""A file is written whole, whatever the text."""

import os

import pytest

from bench.cli import CannotGoOn
from bench.core.files import make_folder, put, write_atomically


def test_half_of_a_surrogate_pair_does_not_lose_the_rest(tmp_path):
    file = write_atomically(tmp_path / "table.csv", "before,\udc80,after\n")
    assert file.read_text() == "before,?,after\n"


def test_what_is_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name, why in (("file", "file is a file"), ("file/x", "file is a file"), ("loop", "a link that leads nowhere")):
        with pytest.raises(CannotGoOn, match=f"{why}; choose another" if "/" not in name else None):
            make_folder(tmp_path / name)
    make_folder(tmp_path / "a" / "b")


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full") as told:
        put(tmp_path / "train.bin", b"tokens")
    assert told.value.filename == str(tmp_path / "train.bin") and not list(tmp_path.iterdir())

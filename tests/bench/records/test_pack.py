"""Archives to take home: within their limits, whole at any moment, and made anew only where something has changed."""

import contextlib
import os
import random
import tarfile
from pathlib import Path

import pytest

from bench.records import pack
from bench.records.pack import Pack


def noise(out: Path, name: str, size: int, seed: int = 0) -> Path:
    file = out / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(random.Random(f"{seed} {name}").randbytes(size))
    return file


def unpacked(out: Path, to: Path) -> dict[Path, bytes]:
    """What the archives hold; each of them must be whole and within the limits."""
    archives = list((out / "pack").iterdir())
    assert len(archives) <= pack.PACK_FILES and all(a.stat().st_size <= pack.PACK_BYTES for a in archives)
    for file in archives:
        with tarfile.open(file) as archive:
            archive.extractall(to, filter="data")
    return {f.relative_to(to): f.read_bytes() for f in to.rglob("*") if f.is_file()}


def contents(out: Path) -> dict[Path, bytes]:
    files = [f for f in out.rglob("*") if f.is_file() and f.relative_to(out).parts[0] not in ("pack", pack.MAKING)]
    return {f.relative_to(out): f.read_bytes() for f in files}


def test_it_obeys_its_limits_and_holds_everything_that_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "PACK_BYTES", 30_000)
    out = tmp_path / "out"
    for name in ("time-a", "time-b", "time-c", "check-a", "proofs", "e2e", "smoke-a"):
        noise(out, f"{name}/samples.bin", 40_000 if name == "check-a" else 12_000)
    noise(out, "records.jsonl", 100)
    (out / "check-a" / "zeros.bin").write_bytes(bytes(1_000_000))
    one = Pack(out)
    packed = one.update()
    assert one.update() == packed == Pack(out).update(), "and again over the old ones"
    assert capsys.readouterr().err.count("not packed, too large: check-a/samples.bin") == 2, "once for each"
    expected = contents(out)
    del expected[Path("check-a/samples.bin")]
    assert unpacked(out, tmp_path / "home") == expected


def test_of_too_much_the_most_important_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "PACK_BYTES", 20_000)
    for n in range(12):
        noise(tmp_path, f"check-{n}/samples.bin", 12_000)
    for name in ("records.jsonl", "time-a/records.jsonl", "e2e/records.jsonl", "sanitize-x/records.jsonl"):
        noise(tmp_path, name, 100)
    packed = Pack(tmp_path).update()
    names = {p.name for p in packed}
    assert len(packed) == pack.PACK_FILES and {"suite-1.tar.gz", "e2e-1.tar.gz", "time-1.tar.gz"} <= names
    assert "sanitize-1.tar.gz" not in names
    assert capsys.readouterr().err.count("not packed") == 12 - 5 + 1


def test_only_what_has_changed_is_made_anew(tmp_path):
    noise(tmp_path, "time-a/records.jsonl", 100)
    noise(tmp_path, "check-a/records.jsonl", 100)
    one = Pack(tmp_path)
    before = {p.name: p.stat().st_ino for p in one.update()}
    noise(tmp_path, "time-b/records.jsonl", 100)
    after = {p.name: p.stat().st_ino for p in one.update()}
    assert after["check-1.tar.gz"] == before["check-1.tar.gz"] and after["time-1.tar.gz"] != before["time-1.tar.gz"]


def test_it_may_lie_elsewhere_among_files_of_others(tmp_path):
    out, home = tmp_path / "out", tmp_path / "home"
    noise(out, "time-a/records.jsonl", 100)
    noise(home, "cache.tar.gz", 100)
    one = Pack(out, home)
    assert [p.name for p in one.update()] == ["time-1.tar.gz"]
    (out / "time-a" / "records.jsonl").unlink()
    assert one.update() == []
    assert [p.name for p in home.iterdir()] == ["cache.tar.gz"] and not (out / "pack").exists()


class Killed(BaseException):
    """As if the process was ended: nothing is tidied up after it but what stands in the code itself."""


@pytest.mark.parametrize("step", range(8))
def test_ended_between_any_two_steps_it_is_whole_and_has_what_it_had(tmp_path, monkeypatch, step):
    """Files grow, so that later ones move on to the next archive of their group."""
    monkeypatch.setattr(pack, "PACK_BYTES", 30_000)
    out = tmp_path / "out"
    names = [f"time-{n}/samples.bin" for n in range(5)]
    for name in names:
        noise(out, name, 8_000)
    one = Pack(out)
    one.update()
    before = unpacked(out, tmp_path / "before")
    noise(out, names[0], 20_000, seed=1)
    noise(out, "e2e/records.jsonl", 100)
    left = step
    replace, unlink = os.replace, Path.unlink

    def counted(do):
        def step_of_it(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return do(*args, **kwargs)

        return step_of_it

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted(replace))
        patched.setattr(Path, "unlink", counted(unlink))
        with contextlib.suppress(Killed):
            one.update()
    after = unpacked(out, tmp_path / "after")
    assert set(before) <= set(after), "nothing that was there is gone"
    Pack(out).update()
    assert unpacked(out, tmp_path / "again") == contents(out)


def test_what_vanishes_or_is_half_written_is_left_out(tmp_path, monkeypatch):
    noise(tmp_path, "time-a/records.jsonl", 100)
    noise(tmp_path, "time-a/.records.csv.x7", 100)
    gone = noise(tmp_path, "time-a/gone", 100)
    one = Pack(tmp_path)
    make = one._make

    def late(name: str, files: list[Path]) -> None:
        gone.unlink(missing_ok=True)
        make(name, files)

    monkeypatch.setattr(one, "_make", late)
    one.update()
    assert set(unpacked(tmp_path, tmp_path.with_name("home"))) == {Path("time-a/records.jsonl")}

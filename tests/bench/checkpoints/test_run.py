"""Checkpoints are whole or passed over, whatever happens to the process or the disk."""

import dataclasses
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench import HOME
from bench.checkpoints import run
from bench.checkpoints.run import FILES, MARKER, OPTIMIZER, REST, WEIGHTS, Held, Writer, load, newest, save
from bench.cli import CannotGoOn
from bench.core.files import DiskFull
from tests.bench.checkpoints.states import MODEL, same, state


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- whole ones ---


@pytest.mark.parametrize(("dtype", "masters"), [("fp32", False), ("bf16", True), ("bf16", False), ("fp16", True)])
def test_what_is_loaded_is_what_was_saved(tmp_path, dtype, masters):
    saved = state(dtype=dtype, masters=masters)
    path = save(tmp_path, saved)
    assert path == tmp_path / "step-00000007"
    assert newest(tmp_path, MODEL) == (path, [])
    assert same(load(path, MODEL), saved)
    assert not same(load(path, MODEL), state(8, dtype, masters=masters))


def test_the_files_are_what_other_programs_read(tmp_path):
    saved = state()
    path = save(tmp_path, saved)
    assert names(path) == sorted([*FILES, MARKER])
    weights = safetensors.torch.load_file(path / WEIGHTS)
    assert weights.keys() == saved.weights.keys() and torch.equal(weights["wte"], saved.weights["wte"])
    moments = safetensors.torch.load_file(path / OPTIMIZER)
    assert torch.equal(moments["m.wpe"], saved.m["wpe"])
    assert json.loads((path / REST).read_text())["model"]["C"] == MODEL.C


def test_nothing_is_asked_of_pickle(tmp_path, monkeypatch):
    path = save(tmp_path, state())
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("a pickle"))
    load(path, MODEL)
    for file in path.iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK"))


def test_the_same_step_again_takes_the_first_ones_place(tmp_path):
    save(tmp_path, state())
    again = dataclasses.replace(state(), rest={"vocabulary": "ab" * 32, "again": True})
    path = save(tmp_path, again)
    assert same(load(path, MODEL), again) and names(tmp_path) == ["step-00000007"]


def test_everything_is_forced_to_disk_before_what_depends_on_it(tmp_path, monkeypatch):
    """Files before the folder that holds them, that before its rename, the rename before the marker, the marker last:
    what no killed process can show, for the system lives on."""
    done: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def forced(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        new = [f"new {file}" for file in (REST, MARKER) if name.startswith(f".{file}.")]  # put's temporary ones
        done.append(f"force {(new or [name])[0]}")
        fsync(handle)

    def renamed(self: Path, to: Path) -> Path:
        done.append(f"rename to {to.name}")
        return rename(self, to)

    def replaced(old: str, new: Path) -> None:
        done.append(f"rename to {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    folder = tmp_path / "checkpoints"
    save(folder, state())
    assert done == [
        f"force {WEIGHTS}",
        f"force {OPTIMIZER}",
        f"force new {REST}",
        f"rename to {REST}",
        "force .step-00000007.writing",
        "rename to step-00000007",
        "force checkpoints",
        f"force new {MARKER}",
        f"rename to {MARKER}",
        "force step-00000007",
        "force checkpoints",
    ]


# --- torn ones ---


@pytest.mark.parametrize("file", [*FILES, MARKER])
@pytest.mark.parametrize("how", ["missing", "cut", "flipped", "longer", "empty"])
def test_a_torn_one_is_named_and_the_one_before_is_taken(tmp_path, file, how):
    good, bad = save(tmp_path, state(3)), save(tmp_path, state(12))
    assert newest(tmp_path, MODEL) == (bad, [])
    damage(bad / file, how, random.Random(1))
    path, ((torn, why),) = newest(tmp_path, MODEL)
    assert (path, torn) == (good, bad) and file in why
    with pytest.raises(CannotGoOn, match="no whole checkpoint"):
        load(bad, MODEL)


def damage(file: Path, how: str, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "missing":
        return file.unlink()
    if how == "cut":
        del content[chance.randrange(1, len(content)) :]
    elif how == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "zeroed":  # blocks that were promised to the file, and never written
        start = chance.randrange(len(content))
        content[start:] = bytes(len(content) - start)
    elif how == "longer":
        content += b" x"
    else:
        content.clear()
    file.write_bytes(content)


def test_damage_at_random_places_is_seen(tmp_path):
    """As after a power cut: any file, cut or zeroed from anywhere, or one bit of it another."""
    good, bad = save(tmp_path, state(3)), save(tmp_path, state(12))
    whole = {file: file.read_bytes() for file in bad.iterdir()}
    chance = random.Random(19)
    for _ in range(100):
        file, how = chance.choice(list(whole)), chance.choice(["cut", "flipped", "zeroed"])
        damage(file, how, chance)
        if file.read_bytes() != whole[file]:  # zeros may have been there
            path, torn = newest(tmp_path, MODEL)
            assert path == good and [p for p, _ in torn] == [bad], (file.name, how)
        file.write_bytes(whole[file])
    assert newest(tmp_path, MODEL) == (bad, [])


def test_nothing_but_torn_ones(tmp_path):
    assert newest(tmp_path / "none", MODEL) == (None, [])
    path = save(tmp_path, state())
    (path / MARKER).unlink()
    assert newest(tmp_path, MODEL)[0] is None
    assert "was not written to its end" in newest(tmp_path, MODEL)[1][0][1]


def test_one_under_another_steps_name_is_torn_and_a_copy_of_it_is_not(tmp_path):
    path = save(tmp_path, state())
    shutil.copytree(path, tmp_path / "step-00000009")
    shutil.copytree(path, tmp_path / "start from this")
    assert newest(tmp_path, MODEL)[0] == path
    assert same(load(tmp_path / "start from this", MODEL), state())


# --- foreign ones ---


def other_model(**sizes):
    return dataclasses.replace(MODEL, name="another", **sizes)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [({"C": 32}, "C 16, not 32"), ({"v": 300}, "v 200, not 300"), ({"NH": 4}, "NH 2, not 4"), ({"L": 1}, "L 2, not 1")],
)
def test_another_models_checkpoint_is_refused_and_stays(tmp_path, sizes, says):
    path = save(tmp_path, state())
    before = everything(tmp_path)
    for refuses in (lambda: load(path, other_model(**sizes)), lambda: newest(tmp_path, other_model(**sizes))):
        with pytest.raises(CannotGoOn, match=f"of made-up, not of another.*{says}"):
            refuses()
    with pytest.raises(CannotGoOn, match="made-up is there, and stays"):
        save(tmp_path, state(model=other_model(**sizes)))
    assert everything(tmp_path) == before


def test_the_same_sizes_under_another_name_are_the_same_model(tmp_path):
    assert load(save(tmp_path, state()), other_model()).step == 7


def test_another_vocabulary_or_dtype_is_refused(tmp_path):
    path = save(tmp_path, state())
    assert load(path, MODEL, "bf16", "ab" * 32).step == 7
    with pytest.raises(CannotGoOn, match="another vocabulary"):
        load(path, MODEL, vocabulary="cd" * 32)
    with pytest.raises(CannotGoOn, match="trained in bf16, not in fp32"):
        load(path, MODEL, dtype="fp32")


@pytest.mark.parametrize("kind", ["weights", "m", "v", "masters"])
@pytest.mark.parametrize("how", ["missing", "foreign", "shape", "dtype"])
def test_tensors_that_are_not_the_models_are_refused(tmp_path, kind, how):
    """Whole by its marker, and wrong: written by something else."""
    bad = state()
    named = dict(getattr(bad, kind))
    taken = named.pop("h1.qkv.bias")
    if how == "foreign":
        named |= {"h1.qkv.bias": taken, "h9.qkv.bias": taken}
    elif how != "missing":
        named["h1.qkv.bias"] = taken[:-1] if how == "shape" else taken.double()
    setattr(bad, kind, named)
    path = save(tmp_path, bad)
    with pytest.raises(CannotGoOn, match="h9.qkv.bias is none of" if how == "foreign" else r"h1\.qkv\.bias is"):
        load(path, MODEL)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CannotGoOn, match="no such checkpoint"):
        load(tmp_path / "none", MODEL)
    with pytest.raises(CannotGoOn, match=r"whole\.json is missing"):
        load(tmp_path, MODEL)


def test_a_later_versions_checkpoint_is_passed_over_with_its_version(tmp_path):
    path = save(tmp_path, state())
    marker = json.loads((path / MARKER).read_text())
    (path / MARKER).write_text(json.dumps({**marker, "version": 2}))
    assert "version 2; this program reads version 1" in newest(tmp_path, MODEL)[1][0][1]


@pytest.mark.parametrize("marker", ["[" * 100_000, "7", "[]", '{"format": "layerbench checkpoint", "version": 1}'])
def test_a_marker_that_is_none_of_ours_is_passed_over(tmp_path, marker):
    path = save(tmp_path, state())
    (path / MARKER).write_text(marker)
    assert "whole.json is damaged" in newest(tmp_path, MODEL)[1][0][1]
    said = {**json.loads(marker), "step": 7, "files": [1]} if marker.startswith("{") else {}
    (path / MARKER).write_text(json.dumps(said))
    assert "whole.json is damaged" in newest(tmp_path, MODEL)[1][0][1]


# --- the background writer ---


def test_the_newest_and_every_mth_stay_and_nothing_foreign_goes(tmp_path):
    (tmp_path / "step-00000001").mkdir()  # no checkpoint of ours
    (tmp_path / "step-00000001" / "notes.txt").write_text("mine")
    with Writer(tmp_path, keep_last=2, keep_every=5) as writer:
        for step in range(2, 13):
            writer.submit(state(step))
    assert writer.written == tmp_path / "step-00000012"
    assert names(tmp_path) == [f"step-{n:08d}" for n in (1, 5, 10, 11, 12)]
    assert (tmp_path / "step-00000001" / "notes.txt").read_text() == "mine"


def test_torn_ones_do_not_count_as_kept(tmp_path):
    with Writer(tmp_path, keep_last=2) as writer:
        for step in (1, 2):
            writer.submit(state(step))
        writer._finish()
        damage(tmp_path / "step-00000002" / WEIGHTS, "cut", random.Random(0))
        writer.submit(state(3))
    assert newest(tmp_path, MODEL)[0] == tmp_path / "step-00000003"
    assert (tmp_path / "step-00000001" / MARKER).exists()


@pytest.fixture
def held_up(monkeypatch):
    """Writing waits until `.set()`, and counts how many write at once."""
    go, writing, most = threading.Event(), [], []
    write = Held.write

    def waits(self, folder):
        writing.append(self.step)
        most.append(len(writing))
        assert go.wait(60)
        try:
            return write(self, folder)
        finally:
            writing.remove(self.step)

    monkeypatch.setattr(Held, "write", waits)
    return go, most


def test_training_goes_on_while_one_is_written_and_what_it_changes_is_not_in_it(tmp_path, held_up):
    go, _ = held_up
    live = state()
    with Writer(tmp_path) as writer:
        writer.submit(live)  # returns, though nothing can be written
        for named in (live.weights, live.m, live.v, live.masters or {}):
            for tensor in named.values():
                tensor.zero_()
        live.rest["data"]["step"] = -1
        assert not (tmp_path / "step-00000007").exists()
        go.set()
    assert same(load(tmp_path / "step-00000007", MODEL), state())


def test_no_more_than_one_is_in_flight(tmp_path, held_up):
    go, most = held_up
    with Writer(tmp_path, keep_last=9) as writer:
        writer.submit(state(1))

        def submit_two() -> None:
            for n in (2, 3):
                writer.submit(state(n))

        later = threading.Thread(target=submit_two)
        later.start()
        later.join(0.2)
        assert later.is_alive() and most == [1]  # it waits for the first
        go.set()
        later.join(60)
    assert most == [1, 1, 1]
    assert all(same(load(tmp_path / f"step-{n:08d}", MODEL), state(n)) for n in (1, 2, 3))


def test_memory_is_taken_once(tmp_path):
    with Writer(tmp_path) as writer:
        writer.reserve(state())
        held = writer._held
        for step in range(3):
            writer.submit(state(step))
            assert writer._held is held
        writer.submit(state(3, "fp32", masters=False))
        assert writer._held is not held


def test_an_error_is_raised_by_the_next_submit_and_once(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    writer = Writer(tmp_path)
    writer.submit(state(1))
    writer._finish()
    with monkeypatch.context() as patch:
        patch.setattr(run.Image, "write", full)
        writer.submit(state(2))
        with pytest.raises(DiskFull, match=r"no space left to write .*step-00000002.*make room"):
            writer.submit(state(3))
        writer.submit(state(4))
        with pytest.raises(DiskFull, match="step-00000004"):
            writer.close()
    assert names(tmp_path) == ["step-00000001"] and writer.written == tmp_path / "step-00000001"
    writer.close()


def test_the_error_that_ends_the_run_is_not_hidden_by_the_writers(tmp_path, monkeypatch):
    monkeypatch.setattr(run.Image, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(ZeroDivisionError), Writer(tmp_path) as writer:
        writer.submit(state())
        raise ZeroDivisionError


def test_what_json_cannot_say_is_refused_at_once(tmp_path):
    with Writer(tmp_path) as writer, pytest.raises(TypeError):
        writer.submit(dataclasses.replace(state(), rest={"generator": object()}))
    assert names(tmp_path) == []


def test_a_second_process_is_refused(tmp_path):
    code = """
        import fcntl, sys
        lock = open(sys.argv[1], "w")
        fcntl.lockf(lock, fcntl.LOCK_EX)
        print(flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(CannotGoOn, match="another process is writing checkpoints there"):
            Writer(tmp_path)
        other.kill()
    Writer(tmp_path).close()


# --- full disks and killed processes ---


def test_a_full_disk_leaves_the_one_before_and_nothing_half_written(tmp_path):
    """A real limit on the size of files, which cuts a write short as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Writer(tmp_path) as writer:
        writer.submit(state(1))
        writer._finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
        try:
            writer.submit(state(2))
            with pytest.raises(DiskFull, match=r"no space left to write .*step-00000002 \(File too large\)"):
                writer.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]
    assert same(load(tmp_path / "step-00000001", MODEL), state(1))


@pytest.mark.parametrize("left", [WEIGHTS, OPTIMIZER, REST, MARKER])
def test_full_at_any_file_leaves_the_same_steps_older_one(tmp_path, monkeypatch, left):
    save(tmp_path, state())
    writes, put = run.Image.write, run.put

    def image(self, path):
        return full(path) if path.name == left else writes(self, path)

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.Image, "write", image)
    monkeypatch.setattr(run, "put", lambda path, text: full(path) if path.name == left else put(path, text))
    with pytest.raises(DiskFull):
        save(tmp_path, dataclasses.replace(state(), rest={"again": True}))
    assert names(tmp_path) == ["step-00000007"]
    assert same(load(tmp_path / "step-00000007", MODEL), state())


def test_what_killed_writers_left_is_swept_up(tmp_path):
    save(tmp_path, state(1))
    for name in (".step-00000002.writing", ".step-00000001.replaced", "step-00000003"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / name)
    (tmp_path / "step-00000003" / MARKER).unlink()  # killed before the marker, while step 3 was being replaced:
    save(tmp_path / "other", state(3)).rename(tmp_path / ".step-00000003.replaced")
    (tmp_path / ".mine").mkdir()
    Writer(tmp_path).close()
    assert names(tmp_path) == [".mine", "other", "step-00000001", "step-00000003"]
    assert same(load(tmp_path / "step-00000003", MODEL), state(3))


@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost(tmp_path, rounds):
    command = [sys.executable, "-m", "tests.bench.checkpoints.killed", str(tmp_path), str(rounds), str(rounds)]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= rounds

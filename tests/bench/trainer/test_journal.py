import csv
import json
import os
import subprocess
import sys

import pytest

from bench import HOME
from bench.cli import CannotGoOn
from bench.core.files import DiskFull
from bench.trainer import journal
from bench.trainer.journal import Journal, events

STEP = dict(step=1, loss=2.5, norm=float("inf"), lr=1e-3, tokens_per_s=3.0)


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    """A kill loses nothing: no buffer of this process holds it. What is no number in JSON is null."""
    book = Journal(tmp_path)
    book.write("step", **STEP)
    assert events(tmp_path) == [{"event": "step", **STEP, "norm": None}]
    book.close()


def test_half_a_line_is_ended_and_skipped(tmp_path):
    (tmp_path / journal.FILE).write_text('{"event": "start", "step": 0}\n{"event": "st')
    book = Journal(tmp_path)
    book.write("step", **STEP)
    book.close()
    assert [e["event"] for e in events(tmp_path)] == ["start", "step"]


def test_two_runs_do_not_write_into_one(tmp_path):
    book = Journal(tmp_path)
    code = "import sys; from pathlib import Path; from bench.trainer.journal import Journal; Journal(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=HOME)
    book.close()
    assert "another run is writing to" in done.stderr
    Journal(tmp_path).close()


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    book = Journal(tmp_path)
    book.write("step", **STEP)
    real = os.write

    def full(handle, content):
        real(handle, bytes(content)[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        book.write("step", **STEP)
    monkeypatch.undo()
    book.close()
    assert len(events(tmp_path)) == 1
    assert (tmp_path / journal.FILE).read_text().endswith("}\n")


def test_nothing_leaves_the_machine_that_should_not(tmp_path):
    book = Journal(tmp_path)
    book.write("start", options={"data": "/home/somebody/secret/data.bin"})
    book.close()
    assert "somebody" not in (tmp_path / journal.FILE).read_text()


def test_tensorboard_gets_curves_and_samples(tmp_path, monkeypatch):
    class Curves:
        def __init__(self):
            self.seen = []

        def add_scalar(self, *what):
            self.seen.append(what)

        add_text = add_scalar

        def close(self):
            self.seen.append("closed")

    found = Curves()
    monkeypatch.setattr(journal, "curves", lambda folder: found)
    book = Journal(tmp_path)
    book.write("step", **{**STEP, "norm": 0.5})
    book.write("sample", step=1, text="once")
    book.close()
    assert found.seen == [
        ("train/loss", 2.5, 1),
        ("train/norm", 0.5, 1),
        ("train/lr", 1e-3, 1),
        ("speed/tokens_per_s", 3.0, 1),
        ("sample", "once", 1),
        "closed",
    ]


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / journal.FILE).mkdir()
    with pytest.raises(CannotGoOn, match="cannot write"):
        Journal(tmp_path)


def test_json_is_one_object_a_line(tmp_path):
    book = Journal(tmp_path)
    for n in range(3):
        book.write("step", **{**STEP, "step": n})
    book.close()
    assert [json.loads(line)["step"] for line in (tmp_path / journal.FILE).read_text().splitlines()] == [0, 1, 2]


def test_a_table_has_a_row_a_step_and_what_was_evaluated_after_it(tmp_path):
    book = Journal(tmp_path)
    book.write("start", step=0)
    book.write("val", step=0, loss=9.5, batches=2)
    for n, loss in ((1, 3.0), (2, 2.0), (3, 1.5)):
        book.write("step", **{**STEP, "step": n, "loss": loss, "mfu": {"palm": 0.25, "llmc": 0.5} if n > 1 else None})
    book.write("val", step=3, loss=1.75, batches=2)
    assert not (tmp_path / journal.TABLE).exists()
    book.close()
    with (tmp_path / journal.FILE).open("a") as file:
        file.write('{"event": "step", "loss": 7}\n')  # by whomever
    book = Journal(tmp_path)  # resumed: the steps since the last checkpoint come again
    book.write("step", **{**STEP, "step": 3, "loss": 1.25, "norm": 0.5})
    book.write("hellaswag", step=3, right=1, of=4, accuracy=0.25)
    book.write("sample", step=3, text="a, b")
    book.close()
    with (tmp_path / journal.TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["val_loss"]) for row in rows] == [
        ("0", "", "9.5"),
        ("1", "3.0", ""),
        ("2", "2.0", ""),
        ("3", "1.25", ""),
    ]
    assert rows[2]["mfu_palm"] == "0.25" and rows[2]["norm"] == "" and rows[3]["hellaswag"] == "0.25"


def test_without_steps_there_is_no_table(tmp_path):
    book = Journal(tmp_path)
    book.write("start", step=0)
    book.close()
    assert [p.name for p in tmp_path.iterdir()] == [journal.FILE]

"""`make bench` goes to its end whatever a part of it found, and its exit code tells of it."""

import shutil
import subprocess

import pytest

from bench import HOME

PYTHON = """#!/bin/sh
echo "ran $*"
case "$*" in *bench.layer*) exit LAYER;; *bench.e2e*) exit STEP;; esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(("layer", "step", "fine"), [(0, 0, True), (2, 0, False), (0, 1, False), (2, 1, False)])
def test_the_training_step_is_shown_though_a_row_is_wrong(tmp_path, layer, step, fine):
    shutil.copy(HOME / "Makefile", tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(PYTHON.replace("LAYER", str(layer)).replace("STEP", str(step)))
    python.chmod(0o755)
    line = ["make", "-o", "setup", f"PY={python}", "bench"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == fine
    assert [text.split()[2] for text in done.stdout.splitlines() if text.startswith("ran ")] == [
        "bench.doctor", "bench.layer", "bench.e2e",
    ]  # fmt: skip
    assert "runs/one/" in done.stdout
    assert (f"Error {layer or step}" in done.stderr) == (not fine)

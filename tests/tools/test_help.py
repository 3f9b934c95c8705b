"""Whoever asks a tool for help gets it, and nothing is done."""

import os
import shutil
import subprocess
import sys

import pytest

from bench import HOME

TOOLS = sorted((HOME / "tools").glob("*.*"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_help_is_all_that_is_done(tool, tmp_path):
    home = tmp_path / "tree"  # a copy, so that what does not ask has nothing to work on
    (home / "tools").mkdir(parents=True)
    shutil.copy(tool, home / "tools")
    run = [sys.executable] if tool.suffix == ".py" else ["sh"]
    done = subprocess.run(
        [*run, f"tools/{tool.name}", "--help"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(HOME), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert (f"usage: {tool.name} [-h]" if tool.suffix == ".py" else f"sh tools/{tool.name} ") in done.stdout
    assert [p.name for p in home.rglob("*")] == ["tools", tool.name]

"""The gate of a pull request, replayed: the workflow's own steps in a clone, twice, with runs that are made up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import HOME
from kernels import cache_dir

# What stands for bench.suite: it writes a run whose cpu.simd takes as long as the tree's file `speed` says.
MADE_UP = """
import sys
from pathlib import Path
import numpy as np
from tests.compare_runs import Noise, layer_records, write_run
out = Path(sys.argv[sys.argv.index("--out") + 1])
slower = float(Path("speed").read_text())
numbers = np.random.default_rng([int(out.name), out.parent.name == "after"])
write_run(out, layer_records(numbers, Noise(), 2, slower={"cpu.simd": slower}))
"""
WORKFLOW = (HOME / ".github/workflows/layerbench.yml").read_text()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with this tree's commands, in which each commit has a speed of its own."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("bench", "kernels", "reference", "tests", "pyproject.toml"):
        (tree / name).symlink_to(HOME / name)
    (tree / "tools").mkdir()
    (tree / "tools" / "gate.sh").write_bytes((HOME / "tools" / "gate.sh").read_bytes())
    (tree / "made_up.py").write_text(MADE_UP)
    (tree / ".gitignore").write_text("runs\n__pycache__\n")
    (tree / "speed").write_text("0")
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "as it was")
    return tree


def steps(event: str) -> list[str]:
    """The commands of the GPU job's steps for an event."""
    job = WORKFLOW[WORKFLOW.index("  gpu:\n") :]
    found = []
    for step in job.split("      - ")[1:]:
        condition, command = re.search(r"if: (.*)", step), re.search(r"run: (.*)", step)
        wanted = not condition or (("!=" in condition[1]) != (event == "pull_request"))
        if command and wanted:
            found.append(command[1])
    return found


def pull_request(tree: Path, base: str) -> "subprocess.CompletedProcess[str]":
    gate = [command for command in steps("pull_request") if command != "make setup"]
    assert len(gate) == 1
    command = gate[0].replace("${{ github.event.pull_request.base.sha }}", base)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "MEASURE": "made_up", "HOME": str(tree.parent)}
    environment["LAYERBENCH_CACHE"] = str(cache_dir())  # it has the charts' script, which takes seconds to bundle
    return subprocess.run(
        ["sh", "-c", command], cwd=tree, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_second_pull_request_is_judged_as_the_first_was(clone: Path) -> None:
    base = git(clone, "rev-parse", "HEAD")
    for speed, code in (("0.3", 1), ("0", 0)):
        (clone / "speed").write_text(speed)
        # As a run that was killed leaves it.
        git(clone, "worktree", "add", "--detach", "-f", str(clone / "runs" / "gate" / "base"), base)
        done = pull_request(clone, base)
        assert done.returncode == code, done.stdout + done.stderr
        told = (clone / "runs" / "gate" / "compare.md").read_text()
        assert told.startswith("### FAIL: 1 slower" if code else "### PASS: nothing slower or wrong or missing")
        assert (clone / "runs" / "gate" / "compare.html").stat().st_size > 10_000
        assert sorted(p.parent.name + p.name for p in clone.glob("runs/gate/*/*") if p.is_dir()) == [
            "after1", "after2", "before1", "before2"
        ]  # fmt: skip
        assert git(clone, "worktree", "list").count("\n") == 0


def test_what_cannot_be_measured_fails(clone: Path) -> None:
    base = git(clone, "rev-parse", "HEAD")
    (clone / "speed").write_text("no number")
    done = pull_request(clone, base)
    assert done.returncode == 3 and "exit code 1" in done.stdout
    assert pull_request(clone, "no-such-commit").returncode == 1


def test_a_fork_runs_nothing_on_ones_own_machine_and_nothing_is_installed_twice() -> None:
    job = WORKFLOW[WORKFLOW.index("  gpu:\n") :]
    assert (
        "github.event.pull_request.head.repo.full_name == github.repository" in job
        and "pull_request_target" not in WORKFLOW
    )
    assert job.count("run: make setup") == 1 and "make setup" not in (HOME / "tools" / "gate.sh").read_text()
    assert len(steps("push")) == 2 and "bench.suite" in steps("push")[1]

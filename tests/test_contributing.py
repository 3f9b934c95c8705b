"""CONTRIBUTING.md's worked example is run as it stands: one new variant, no other file edited."""

import re
import subprocess
import sys
from pathlib import Path

from bench import registry

HOME = Path(__file__).parent.parent
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def test_the_worked_example_works(tmp_path):
    examples = EXAMPLE.findall((HOME / "CONTRIBUTING.md").read_text())
    assert [name for name, _ in examples] == ["cpu/residual/twice.py", "cpu/residual/twice.cpp"]
    for name, text in examples:
        file = tmp_path / "kernels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = [v for v in registry.discover((tmp_path / "kernels",)) if v.name == "cpu.twice"]
    assert [v.layer for v in found] == ["residual"]
    command = "bench.layer residual --only cpu.twice --check-only -a dtype=fp32,bf16"
    where = ["--kernels", str(tmp_path / "kernels"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), *where], cwd=HOME, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") >= 2 and "2 ok" in done.stdout

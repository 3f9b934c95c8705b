"""CONTRIBUTING.md's worked examples are run as they stand: new variants, no other file edited."""

import importlib
import re
import shlex

import pytest

from bench import HOME
from bench.core import variants
from tests import commands

SUFFIXES = (("cpu", "py"), ("cpu", "cpp"), ("cuda", "py"), ("cuda", "cu"), ("triton", "py"))
COMMAND = re.compile(r"^ {4}(?:.* && )?python -m bench\.(\w+)(.*?)(?: {2}.*| # .*)?$", re.MULTILINE)
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def test_the_worked_examples_work(tmp_path):
    examples = EXAMPLE.findall((HOME / "CONTRIBUTING.md").read_text())
    assert [name for name, _ in examples] == [f"{b}/residual/twice.{s}" for b, s in SUFFIXES]
    for name, text in examples:
        file = tmp_path / "kernels" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = [v for v in variants.discover((tmp_path / "kernels",)) if v.stem == "twice"]
    assert [(v.layer, v.name) for v in found] == [("residual", f"{b}.twice") for b in ("cpu", "cuda", "triton")]
    where = ["--kernels", str(tmp_path / "kernels"), "--out", str(tmp_path / "run")]
    proved = run("bench.layer residual --only cpu.twice,cuda.twice,triton.twice --check-only -a dtype=bf16", *where)
    assert "1 ok, 2 simulated" in proved
    assert "0 with a fault" in run("bench.static residual --only cuda.twice,triton.twice --arch sm_90a", *where)


@pytest.mark.parametrize("file", ("CONTRIBUTING.md", "README.md"))
def test_commands_have_the_options_that_their_programs_take(file):
    commands = COMMAND.findall((HOME / file).read_text())
    assert len(commands) > 10
    for module, arguments in commands:
        importlib.import_module(f"bench.{module}").parser().parse_args(shlex.split(arguments))


def run(command: str, *where: str) -> str:
    name, *arguments = command.removeprefix("bench.").split()
    done = commands.run(name, *arguments, *where)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

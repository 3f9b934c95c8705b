"""The table of what judging costs: of the commands that are run, and of all that they start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import HOME
from tools import cheats, judge_cost
from tools.judge_cost import COMMANDS, PARTS, REST, Cost

COST = Cost(1.25, 3.0, {**dict.fromkeys(PARTS, 0.7), REST: 0.2})
RUNS = [run for shared in COMMANDS for run in judge_cost.runs(shared)]


def page_with(text: str) -> str:
    return f"before\n{judge_cost.BEGIN}\n{text}\n{judge_cost.END}\nafter\n"


def test_the_page_has_the_costs_of_todays_commands():
    assert judge_cost.main(["--check"]) == 0, "python tools/judge_cost.py"


def test_each_command_is_one_of_benchs():
    from bench import layer

    for command in (command for shared in COMMANDS for command in shared):
        layer.parser().parse_args(command.split())


def test_a_table_of_other_commands_or_columns_is_told():
    rows = dict.fromkeys(RUNS, COST)
    written = judge_cost.table(rows)
    assert judge_cost.of_these_commands(page_with(written))
    another = {(command.replace("gelu", "softmax"), cache): COST for command, cache in rows}
    for old in (
        judge_cost.table(another),
        judge_cost.table(dict(list(rows.items())[1:])),
        written.replace("the judge", "a judge"),
        written.replace("| 0.7", "| some", 1),
        "",
    ):
        assert not judge_cost.of_these_commands(page_with(old))


def test_a_machine_that_was_not_quiet_is_told():
    rows = dict.fromkeys(RUNS, COST)
    assert "not quiet" not in judge_cost.table(rows)
    last = list(rows)[-1]
    told = judge_cost.table(rows | {last: Cost(1.0, 1.0, COST.parts, "other programs use 34% of 2 cores")})
    assert f"**The machine was not quiet**, in 1 of {len(rows)} runs ({last[0]}, full cache: other programs" in told


def test_the_table_is_written_between_its_marks(tmp_path, monkeypatch, capsys):
    page = tmp_path / "judge.md"
    page.write_text(page_with("that of yesterday"))
    monkeypatch.setattr(judge_cost, "PAGE", page)
    monkeypatch.setattr(judge_cost, "HOME", tmp_path)
    monkeypatch.setattr(judge_cost, "measure", lambda: dict.fromkeys(RUNS, COST))
    assert judge_cost.main(["--check"]) == 1 and "tools/judge_cost.py" in capsys.readouterr().err
    assert judge_cost.main([]) == 0 and judge_cost.main(["--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "yesterday" not in text
    page.write_text("no table here")
    with pytest.raises(ValueError, match="for the table to stand between"):
        judge_cost.main([])


# A program whose child outlives it, and calls itself by the name of a room; each burns what it is told to.
PROGRAM = """
import os, sys, time
def burn(seconds):
    while time.process_time() < seconds:
        pass
if os.fork() == 0:
    os.setpgid(0, 0)
    open("/proc/self/comm", "w").write("JudgeRoom")
    before = time.process_time()
    burn(before + 0.4)
    os._exit(0)
burn(0.2)
"""
MEASURE = f"""
import json, os, sys
from pathlib import Path
from tools import judge_cost
cost = judge_cost.cost_of([sys.executable, "-c", {PROGRAM!r}], dict(os.environ), Path(sys.argv[1]))
try:
    judge_cost.cost_of([sys.executable, "-c", "raise SystemExit('no such layer')"], dict(os.environ), Path(sys.argv[1]))
except RuntimeError as error:
    print(json.dumps([cost.cpu, cost.parts, str(error)]))
"""


def test_what_outlives_a_command_is_counted_and_a_command_that_fails_is_told(tmp_path: Path):
    """In a process of its own: whoever measures becomes the parent of what loses its own."""
    line = [sys.executable, "-c", MEASURE, str(tmp_path / "output")]
    done = subprocess.run(line, cwd=HOME, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(HOME)})
    assert done.returncode == 0, done.stderr
    cpu, parts, failed = json.loads(done.stdout)
    assert cpu >= 0.6 and 0.3 <= parts["the judge"] <= cpu and parts["variants"] == 0
    assert abs(sum(parts.values()) - cpu) < 0.1 and "no such layer" in failed


def test_both_tables_of_the_page_have_their_marks():
    page = judge_cost.PAGE.read_text()
    assert cheats.between(page, judge_cost.BEGIN, judge_cost.END, "").count(cheats.BEGIN) == 1

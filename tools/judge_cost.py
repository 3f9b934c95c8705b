"""What judging costs: the table of docs/judge.md, in CPU seconds by process.

python tools/judge_cost.py          run the commands, four minutes on two quiet cores, and write the table anew
python tools/judge_cost.py --check  only say whether the table is of these commands; exit code 1 where it is not

Each command starts with an empty cache of its own (Inductor's, too) and then has it full. What a process took is read
ten times a second, and how much all of them took from the system once they have ended: compilers that lived for less
than a tenth are in the rest. Threads wait as they do for whoever sets OMP_WAIT_POLICY, or does not.
"""

import argparse
import ctypes
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))

from bench.machine import facts  # noqa: E402
from tools import cheats  # noqa: E402

PAGE = cheats.PAGE
BEGIN, END = "<!-- costs -->", "<!-- end of costs -->"
EMPTY, FULL = "empty", "full"
# Commands that share a cache: the first of them is run with it empty, then all are with it full.
COMMANDS = (
    (
        "gelu --all --no-simulate --seconds 2",
        "gelu --only cpu.simd --pass forward --seconds 0.2",
    ),
    ("layernorm --only cuda.shared --check-only",),
    ("matmul --only cuda.shared --check-only",),
    ("attention --only cuda.shared --check-only",),
    ("layernorm --only triton.rows --check-only",),
)
# Whose a process is, by what `ps` calls it: the rooms of bench/trial have their classes' names.
PARTS = {
    "the command": ("python",),
    "the judge": ("JudgeRoom",),
    "variants": ("Room",),
    "compilers": ("cc1plus", "g++", "c++", "as", "ld", "collect2", "ptxas", "cuobjdump", "nvdisasm"),
}
REST = "the rest"  # the server that processes are forked from, git, and what was too short to be seen
COLUMNS = ("wall", "CPU", *PARTS, REST)
LOOKS_S = 0.1
LEFT_S = 10.0  # for what a command leaves behind to come to its end
SUBREAPER = 36  # prctl(2): whoever loses its parent becomes a child of this process


@dataclass(frozen=True)
class Cost:
    """Seconds of one command: the clock's, the CPU's, and those by part; and what else the machine did meanwhile."""

    wall: float
    cpu: float
    parts: dict[str, float]
    busy: str = ""


def runs(shared: Sequence[str]) -> list[tuple[str, str]]:
    """(command, cache) of each row that commands with one cache come to."""
    return [(shared[0], EMPTY), *((command, FULL) for command in shared)]


def measure() -> dict[tuple[str, str], Cost]:
    """By row. Raises RuntimeError with the last lines of a command that fails."""
    found: dict[tuple[str, str], Cost] = {}
    for shared in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            for command, cache in runs(shared):
                out = Path(folder) / f"run-{len(found)}"
                line = [sys.executable, "-m", "bench.layer", *command.split(), "--out", str(out)]
                environment = {
                    **os.environ,
                    "LAYERBENCH_CACHE": f"{folder}/cache",
                    "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
                }
                found[command, cache] = cost_of(line, environment, Path(folder) / "output")
                print(f"{command}, {cache} cache: {_row(found[command, cache])}", file=sys.stderr)
    return found


def cost_of(line: Sequence[str], environment: dict[str, str], output: Path) -> Cost:
    """Run a program, what it writes going to `output`, until all that it started has ended. Linux alone."""
    if not sys.platform.startswith("linux") or ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0):
        raise RuntimeError("what processes take, and who is whose child, is asked of Linux")
    facts.snapshot()
    before, begun = _waited_for(), time.monotonic()
    file = (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    both = [file, (os.POSIX_SPAWN_DUP2, 1, 2)]
    pid = os.posix_spawn(line[0], list(line), environment, file_actions=both, setsid=True)
    seen: dict[tuple[int, str], float] = {}
    status, wall, last = None, 0.0, float("inf")
    while time.monotonic() < last:
        seen |= _taken(pid)
        try:
            done, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if done == pid:
            status, wall, last = code, time.monotonic() - begun, time.monotonic() + LEFT_S
        elif not done:
            time.sleep(LOOKS_S)
    if status:
        raise RuntimeError(f"{' '.join(line)}:\n{output.read_text(errors='replace')[-2000:]}")
    cpu, parts = _waited_for() - before, dict.fromkeys((*PARTS, REST), 0.0)
    for (_, name), seconds in seen.items():
        bare = name.rstrip("0123456789.")  # python3.12
        parts[next((part for part, names in PARTS.items() if bare in names), REST)] += seconds
    parts[REST] = max(0.0, cpu - sum(parts[part] for part in PARTS))
    return Cost(wall, cpu, parts, facts.busy(facts.snapshot()) or "")


def _waited_for() -> float:
    """CPU seconds of children that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _taken(session: int) -> dict[tuple[int, str], float]:
    """CPU seconds of a session's processes, by number and name: a fork is called otherwise once it knows its work."""
    found, tick = {}, os.sysconf("SC_CLK_TCK")
    for entry in os.listdir("/proc"):
        try:
            text = Path(f"/proc/{entry}/stat").read_text() if entry.isdigit() else ""
        except OSError:  # it has ended meanwhile
            continue
        head, _, rest = text.rpartition(")")
        fields = rest.split()
        if fields and int(fields[3]) == session:
            found[int(entry), head.partition("(")[2]] = (int(fields[11]) + int(fields[12])) / tick
    return found


def _row(cost: Cost) -> str:
    figures = [cost.wall, cost.cpu, *(cost.parts[part] for part in (*PARTS, REST))]
    return " | ".join(f"{seconds:.1f}" for seconds in figures)


def table(found: dict[tuple[str, str], Cost]) -> str:
    """Markdown: what was measured on, whether it was quiet, and a line for each run."""
    git = facts.git()
    tree = f"commit {(git['commit'] or 'unknown')[:10]}{', changed' if git['dirty'] else ''}"
    lines = [f"{facts.one_line()}; {tree}. Seconds, one run each."]
    if noisy := [f"{command}, {cache} cache: {cost.busy}" for (command, cache), cost in found.items() if cost.busy]:
        lines += ["", f"**The machine was not quiet**, in {len(noisy)} of {len(found)} runs ({noisy[0]})."]
    lines += ["", f"| `python -m bench.layer` | cache | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    lines += [f"| `{command}` | {cache} | {_row(cost)} |" for (command, cache), cost in found.items()]
    return "\n".join(lines)


def of_these_commands(page: str) -> bool:
    """Whether the page's table has the rows and columns that this program would write."""
    lines = [line for line in page.partition(BEGIN)[2].partition(END)[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines] or [[], []]
    figures = [cell for row in rows for cell in row[2:]]
    wanted = [run for shared in COMMANDS for run in runs(shared)]
    measured = len(figures) == len(COLUMNS) * len(rows) and all(re.fullmatch(r"\d+\.\d", cell) for cell in figures)
    return head[2:] == [*COLUMNS] and [tuple(row[:2]) for row in rows] == wanted and measured


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    old = PAGE.read_text()
    if args.check:
        if not (same := of_these_commands(old)):
            print(f"{PAGE.relative_to(HOME)} has the costs of other commands: tools/judge_cost.py", file=sys.stderr)
        return int(not same)
    cheats.between(old, BEGIN, END, "")  # whether there is a place for it, before minutes are spent
    written = table(measure())
    PAGE.write_text(cheats.between(PAGE.read_text(), BEGIN, END, written))
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())

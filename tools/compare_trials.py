"""How often bench.compare is right on this machine: runs of the same code, and of a copy with a planted slowdown.

.venv/bin/python tools/compare_trials.py --out runs/trials                    30 runs of each; a quarter of an hour
.venv/bin/python tools/compare_trials.py --out runs/trials --judge            once more over the runs that are there

Runs of both sides take turns. Same code: each run against the next of its side. Planted: each pair. In the copy the
variant waits after each call until so much of the call's own time has passed, so that it is slower by that share
whatever the machine does. Nothing else may run beside it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "results", "docs", "tests", "__pycache__")
PLANT = """

def _slower(call):
    import functools
    import time

    @functools.wraps(call)
    def slower(*inputs, **outputs):
        start = time.perf_counter_ns()
        call(*inputs, **outputs)
        end = start + (time.perf_counter_ns() - start) * {factor}
        while time.perf_counter_ns() < end:
            pass

    return slower


forward = _slower(forward)
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    p.add_argument("--layer", default="matmul")
    p.add_argument("--variant", default="simd", help="of kernels/cpu; default simd")
    p.add_argument("--shape", default="gpt2-124m/attproj")
    p.add_argument("--share", type=float, default=0.05, help="of the planted slowdown, default 0.05")
    p.add_argument("--threads", type=int, default=1, help="default 1: a thread waits for no other")
    p.add_argument("--runs", type=int, default=30, help="of each side, default 30")
    p.add_argument("--processes", type=int, default=3)
    p.add_argument("--seconds", type=float, default=4.0)
    p.add_argument("--judge", action="store_true", help="measure nothing: compare the runs that are there")
    args = p.parse_args()
    out = args.out.resolve()
    if not args.judge:
        copy = planted(out / "copy", args)
        for i in range(args.runs):
            for side, where in (("same", HOME), ("slower", copy)):
                measure(out / side / f"{i:02}", where, args)
                print(f"{side} {i + 1} of {args.runs}", file=sys.stderr, flush=True)
    sides = {side: sorted((out / side).iterdir()) for side in ("same", "slower")}
    name = f"cpu.{args.variant}"
    same = [v for runs in sides.values() for pair in pairwise(runs) for v in verdicts(*pair).values()]
    found = [verdicts(*pair)[name] for pair in zip(sides["same"], sides["slower"], strict=True)]
    pooled = verdicts(out / "same", out / "slower")[name]
    halves = [half_against_half(out / side, runs) for side, runs in sides.items()]
    print(f"same code, each run against the next: {told(same)}")
    print(f"same code, half of the runs against the other half: {told([v for half in halves for v in half.values()])}")
    print(f"{name} {args.share:.0%} slower, run against run: {told(found)}")
    print(f"{name} {args.share:.0%} slower, all runs of a side together: {pooled}")


def planted(copy: Path, args: argparse.Namespace) -> Path:
    """A copy of this checkout whose variant is slower."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(HOME, copy, ignore=LEFT_OUT)
    source = copy / "kernels" / "cpu" / args.layer / f"{args.variant}.py"
    source.write_text(source.read_text() + PLANT.format(factor=1 + args.share))
    return copy


def measure(run: Path, checkout: Path, args: argparse.Namespace) -> None:
    what = f"{args.layer} --only cpu.{args.variant},torch.eager --pass forward --shape {args.shape} --cache warm"
    how = f"--threads {args.threads} --processes {args.processes} --seconds {args.seconds} --seed 1 --out"
    command = [sys.executable, "-m", "bench.layer", *what.split(), *how.split(), str(run)]
    quiet = os.environ | {"LAYERBENCH_REPORT": "0"}
    subprocess.run(command, cwd=checkout, env=quiet, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def verdicts(before: Path, after: Path) -> dict[str, str]:
    """Of each variant, what bench.compare says and the change that it saw."""
    command = [sys.executable, "-m", "bench.compare", str(before), str(after), "--json"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    cases: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["cases"]
    return {c["variant"]: f"{c['verdict']} {c['ratio'] - 1:+.1%} ({c['reason']})" for c in cases}


def half_against_half(side: Path, runs: list[Path]) -> dict[str, str]:
    """The runs of one side taken alternately, so that a slow hour is in both halves."""
    halves = [side.parent / f"{side.name}-{which}" for which in ("odd", "even")]
    for half, mine in zip(halves, (runs[::2], runs[1::2]), strict=True):
        shutil.rmtree(half, ignore_errors=True)
        for run in mine:
            shutil.copytree(run, half / run.name)
    return verdicts(*halves)


def told(found: list[str]) -> str:
    counts = Counter(text.partition(" ")[0] for text in found)
    return f"{len(found)} verdicts: {', '.join(f'{n} {verdict}' for verdict, n in counts.most_common())}"


if __name__ == "__main__":
    main()

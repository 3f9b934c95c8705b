"""How often the proof (bench/trial/truth.py) would call an honest variant inaccurate: docs/false_alarms.md.

.venv/bin/python tools/false_alarms.py                      40 s for each layer, phase and dtype: half an hour
.venv/bin/python tools/false_alarms.py --seconds 2 --layers gelu,softmax --out page.md
.venv/bin/python tools/false_alarms.py --seed 2 --also page.md --out page.md      more calls, both together

Seconds are the CPU's, so that a busy machine measures as much. Cases are those of a proof, slices of what is timed of
gpt2-124m among them, each as likely as another. Every draw has a seed of its own and its yard is worked out anew.
Judged by it are honest stand-ins, never the very answers the yard was made of: torch.eager on another draw (as timed
calls are judged), with its sums in another order (axes that may be turned round are), with two threads instead of
one; the other PyTorch variants but torch.compile, which would compile each shape; and the repository's own kernels
for the CPU.
"""

import argparse
import math
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))

import torch  # noqa: E402

from bench.core import variants  # noqa: E402
from bench.core.arena import Arena, workspace_of  # noqa: E402
from bench.core.case import Case, Values, cases_of, draw, each, map  # noqa: E402
from bench.core.variants import Variant  # noqa: E402
from bench.trial import accuracy, truth  # noqa: E402
from bench.trial.accuracy import K_ONE, K, Yard  # noqa: E402
from bench.trial.checks import BORDERLINE  # noqa: E402
from bench.trial.prove import REDRAWS  # noqa: E402
from kernels import Unavailable  # noqa: E402
from reference import contract  # noqa: E402
from reference.models import MODELS  # noqa: E402

MODEL = "gpt2-124m"  # whose shapes are timed, unless bench.layer is told of another
DTYPES = ("fp32", "bf16", "fp16")
TURNABLE = {"B", "C", "K", "M", "N", "HS"}  # symbols of axes whose order means nothing
IN_ORDER = {"rope": {"HS"}, "q8_quantise": {"K"}, "q8_matmul": {"K"}}  # but to these: pairs, groups from the front on
TAIL = 0.05  # the share of ratios that the estimate of the tail is made of
CONFIDENCE = 0.95
COLUMNS = (
    *("layer", "phase", "dtype", "cases", "seeds", "calls", "beyond", "fails"),
    *("largest ratio", "bound (95 %)", "tail", "largest of"),
)
MOST_TOLD = 3  # of a row, of what was beyond the limit


@dataclass
class Row:
    """What was seen of one layer, phase and dtype. A call that is judged is one draw of one stand-in; its ratio is the
    worst of its outputs."""

    layer: str
    phase: str
    dtype: str
    cases: int  # of a proof
    seeds: int = 0
    calls: int = 0
    beyond: int = 0  # the limit, in one draw
    failed: int = 0  # those of them that a proof would call inaccurate
    worst: float = 0.0  # ratio
    largest: str = ""  # stand-in and case of it
    tail: float = 0.0  # rate beyond the limit, by `tail_beyond`
    told: list[str] = field(default_factory=list)  # of those beyond the limit

    @property
    def name(self) -> str:
        return f"{self.layer} {self.phase} {self.dtype}"

    def bound(self) -> float:
        return upper_bound(self.failed, self.calls)

    def with_(self, other: "Row") -> "Row":
        """Both together. The tail is that of the one with more calls: the ratios themselves are in neither."""
        more = other if other.worst > self.worst else self
        return replace(
            self,
            seeds=self.seeds + other.seeds,
            calls=self.calls + other.calls,
            beyond=self.beyond + other.beyond,
            failed=self.failed + other.failed,
            worst=more.worst,
            largest=more.largest,
            tail=max(self, other, key=lambda row: row.calls).tail,
            told=self.told + other.told,
        )


def upper_bound(fails: int, trials: int) -> float:
    """Clopper & Pearson (1934): the largest rate at which so few fails still come with 5 % probability."""
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if _at_most(fails, trials, rate) > 1 - CONFIDENCE else (low, rate)
    return high


def _at_most(fails: int, trials: int, rate: float) -> float:
    """The binomial distribution up to `fails`."""
    if fails >= trials:
        return 1.0
    choices = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(fails + 1)]
    return sum(math.exp(c + k * math.log(rate) + (trials - k) * math.log1p(-rate)) for k, c in enumerate(choices))


def tail_beyond(ratios: list[float], limit: float) -> float:
    """The share of ratios beyond the limit, from the slope of the largest seen (Hill 1975): a power law is the
    heaviest tail they could have."""
    largest = sorted((r for r in ratios if r > 0), reverse=True)[: max(10, int(len(ratios) * TAIL))]
    if len(largest) < 10 or largest[0] == largest[-1]:
        return float(bool(largest) and largest[-1] > limit)
    slope = (len(largest) - 1) / sum(math.log(r / largest[-1]) for r in largest)
    return min(1.0, len(largest) / len(ratios) * (limit / largest[-1]) ** -slope)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40, help="of the CPU, for each layer, phase and dtype")
    parser.add_argument("--layers", default=",".join(contract.layer_names()))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--also", type=Path, help="a page of the same cases and another seed: both together are written"
    )
    parser.add_argument("--out", type=Path, default=HOME / "docs" / "false_alarms.md")
    options = parser.parse_args(argv)
    told, before = read(options.also.read_text()) if options.also else ("", {})
    told += f"{' and ' if told else ''}`--seed {options.seed} --seconds {options.seconds:g}`"
    wanted = [(name, phase) for name in options.layers.split(",") for phase in contract.phases_of(contract.load(name))]
    all = [(*one, dtype, options.seconds, options.seed) for one in wanted for dtype in DTYPES]
    found = dict(before)
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("LAYERBENCH_CACHE", cache)
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            for row in pool.map(measure, *zip(*all, strict=True)):
                print(f"{row.name}: {row.failed} of {row.calls}, {row.worst:.2f}", flush=True)
                found[row.name] = row.with_(before[row.name]) if row.name in before else row
                options.out.write_text(page([*found.values()], told))
    return 0


def measure(layer: str, phase: str, dtype: str, seconds: float, seed: int) -> Row:
    """Draw cases of the proof in random order until the time is over, and judge the stand-ins on each."""
    torch.set_num_threads(1)
    every = variants.discover()
    eager = variants.find(every, layer, "torch.eager")
    others = [v for v in every if v.layer == layer and v.has(phase) and dtype in v.dtypes and not v.gpu_code]
    others = [v for v in others if v.stem not in ("eager", "compile") and not variants.unavailable(v, "cpu", dtype)]
    cases = cases_of(layer, phase, dtype, [0, 1], timed=timed_shapes(layer, phase, dtype))
    ratios: list[float] = []
    row, order = Row(layer, phase, dtype, len(cases)), random.Random(f"{layer} {phase} {dtype} {seed}")
    end = time.process_time() + seconds
    while time.process_time() < end:
        case = replace(order.choice(cases), seed=order.randrange(2**31))
        values = draw(case)
        yards = truth.worked_out(case, values, eager)
        row.seeds += 1
        for name, stand_in in stand_ins(case, eager, others):
            try:
                ratio, evidence = judged(stand_in, case, values, yards)
            except Unavailable:  # a variant that does not take this case, or an option of it
                continue
            ratios.append(ratio)
            if ratio > row.worst:
                row.worst, row.largest = ratio, f"{name}, {case.name}"
            if evidence:
                fails = ratio > BORDERLINE * K or any(again(stand_in, case, eager, order) for _ in range(REDRAWS))
                row.beyond, row.failed = row.beyond + 1, row.failed + fails
                row.told.append(f"{'failed' if fails else 'once'}: {name}, {case}: {evidence}")
    row.calls, row.tail = len(ratios), tail_beyond(ratios, K)
    return row


def timed_shapes(layer: str, phase: str, dtype: str) -> list[contract.Shape]:
    """What `bench.layer` times by default."""
    calls = MODELS[MODEL].shapes(layer, contract.DEFAULT_B, contract.DEFAULT_T).values()
    return [contract.overwriting(contract.load(layer), phase, call.shape, dtype) for call in calls]


# From a case, its values and yards to the yards that count and the outputs that are judged by them.
StandIn = Callable[[Case, Values, list[Yard]], tuple[list[Yard], list[torch.Tensor]]]


def judged(stand_in: StandIn, case: Case, values: Values, yards: list[Yard]) -> tuple[float, str]:
    """The worst ratio of a stand-in's outputs, and what is said against it, if anything."""
    limits, outputs = stand_in(case, values, yards)
    findings = [accuracy.judge(got, y, case.edit is None) for got, y in zip(outputs, limits, strict=True)]
    return max(f.ratio for f in findings), next((f.evidence for f in findings if f.check != "ok"), "")


def again(stand_in: StandIn, case: Case, eager: Variant, order: random.Random) -> str:
    """The same of another draw, as the proof draws a case again whose error is near the limit."""
    other = replace(case, seed=order.randrange(2**31))
    values = draw(other)
    return judged(stand_in, other, values, truth.worked_out(other, values, eager))[1]


def stand_ins(case: Case, eager: Variant, others: list[Variant]) -> Iterator[tuple[str, StandIn]]:
    """Each honest stand-in by name."""

    def another(case: Case, values: Values, yards: list[Yard]) -> tuple[list[Yard], list[torch.Tensor]]:
        other = replace(case, seed=(case.seed + 1) % 2**31)
        fresh = draw(other)
        limits, outputs = truth.yards_of(other, fresh, eager, like=yards), call(eager, other, fresh)
        if not all(accuracy.judge(got, y).check == "ok" for got, y in zip(outputs, limits, strict=True)):
            limits = truth.worked_out(other, fresh, eager)
        return limits, outputs

    def two_threads(case: Case, values: Values, yards: list[Yard]) -> tuple[list[Yard], list[torch.Tensor]]:
        torch.set_num_threads(2)
        try:
            return yards, call(eager, case, values)
        finally:
            torch.set_num_threads(1)

    if case.edit is None:  # as timed calls are judged
        yield "another draw", another
    yield "two threads", two_threads
    if case.edit is None:  # an edit may be about the order: outliers in the first columns are not those in the last
        yield "sums turned round", lambda case, values, yards: (yards, turned_call(eager, case, values))
    for variant in others:
        yield variant.name, partial(by_the_cases_yards, variant)


def by_the_cases_yards(
    variant: Variant, case: Case, values: Values, yards: list[Yard]
) -> tuple[list[Yard], list[torch.Tensor]]:
    return yards, call(variant, case, values)


def call(variant: Variant, case: Case, values: Values) -> list[torch.Tensor]:
    module = variant.load()
    arena = Arena(case, "cpu", workspace_of(module, case))
    arena.load(values)
    arena.reset()
    arena.call(getattr(module, case.phase))
    return [part.clone() for value in arena.outputs.values() for part in each(value)]


def turned_call(variant: Variant, case: Case, values: Values) -> list[torch.Tensor]:
    """The same, with every axis turned round whose order means nothing."""
    p = contract.pass_of(case.module, case.phase)
    free = TURNABLE - IN_ORDER.get(case.layer, set())
    axes = {t.name: [] if t.many else [i for i, s in enumerate(t.shape.split()) if s in free] for t in p.tensors()}
    turned = {name: map(value, partial(torch.Tensor.flip, dims=axes[name])) for name, value in values.items()}
    names = [t.name for t in p.outputs if t.when(case.shape) for _ in t.many_sizes(case.shape)]
    return [part.flip(axes[name]) for name, part in zip(names, call(variant, case, turned), strict=True)]


def page(rows: list[Row], told: str) -> str:
    """told: how they were measured."""
    calls, beyond, fails = (sum(getattr(r, name) for r in rows) for name in ("calls", "beyond", "failed"))
    pooled = upper_bound(fails, calls)
    most, mean = max(r.cases for r in rows), sum(r.cases for r in rows) / len(rows)
    worst = max(rows, key=lambda r: r.tail * r.cases)
    lines = [
        "# How often an honest variant is called inaccurate",
        "",
        f"Written by `tools/false_alarms.py`, {told} (torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, on a CPU); limits: K = {K:g}, K_ONE = {K_ONE:g}.",
        "",
        f"{calls:,} judged calls on {sum(r.seeds for r in rows):,} seeds, {beyond} of them beyond the limit, {fails} "
        f"called inaccurate: an error of up to {BORDERLINE:g} times the limit must be in one of {REDRAWS} further "
        f"draws too. With 95 % confidence the rate over all layers is below {pooled:.1e} a call. A proof of a phase "
        f"judges {mean:.0f} cases on average, {most} at most, and so fails an honest variant less than once in "
        f"{1 / (mean * pooled):,.0f} runs on average, and in {1 / (most * pooled):,.0f} where it judges most.",
        "",
        "A row by itself has too few calls for as low a bound (`bound`). `tail` is where the largest twentieth of its "
        "ratios point: the rate beyond the limit if their tail is a power law (Hill 1975). By that, "
        f"{worst.name} is the worst: in one run of {_one_in(worst.tail * worst.cases)} a case would be drawn again.",
        "",
        "A ratio is an error in yards; the limit is 4. Cases are those of the proof (ragged shapes, slices of the "
        f"shapes of {MODEL} that are timed, structured inputs), each draw with a seed and a yard of its own. Calls are "
        "of honest stand-ins, never of the very answers a yard is made of: torch.eager on another draw of the case by "
        "the yard of the first (plain values; what is beyond it by its own), with two threads, and with axes turned "
        "round (plain values); the other PyTorch variants without torch.compile; the repository's CPU kernels (fp32, "
        "bf16). What this does not cover: GPUs, whole timed shapes, arithmetic nobody has written here.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * 3}{'--:|' * (len(COLUMNS) - 4)}---|",
    ]
    for r in rows:
        counts = f"{r.seeds:,} | {r.calls:,} | {r.beyond} | {r.failed}"
        rates = f"{r.worst:.2f} | {r.bound():.1e} | {r.tail:.0e}"
        lines.append(f"| {r.layer} | {r.phase} | {r.dtype} | {r.cases} | {counts} | {rates} | {r.largest} |")
    if seen := [f"- {text}" for r in rows for text in r.told[:MOST_TOLD]]:
        lines += ["", f"What was beyond the limit (at most {MOST_TOLD} a row):", "", *seen]
    return "\n".join(lines) + "\n"


def read(text: str) -> tuple[str, dict[str, Row]]:
    """How a page was measured, and its rows by name."""
    rows: dict[str, Row] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(COLUMNS) and cells[2] in DTYPES:
            layer, phase, dtype, *counts = cells[:8]
            cases, seeds, calls, beyond, failed = (int(count.replace(",", "")) for count in counts)
            worst, _, tail, largest = cells[8:]
            row = Row(layer, phase, dtype, cases, seeds, calls, beyond, failed, float(worst), largest, float(tail))
            rows[row.name] = row
        elif found := re.fullmatch(r"- ((?:once|failed): .*)", line):
            owner = next(r for r in rows.values() if re.search(rf", {r.layer} {r.phase} .*dtype={r.dtype}\b", found[1]))
            owner.told.append(found[1])
    said = re.search(r"`--seed.*`(?= \()", text)
    return said[0] if said else "", rows


def _one_in(rate: float) -> str:
    return f"{1 / rate:,.0f}" if rate > 1e-9 else "a billion or more"


if __name__ == "__main__":
    sys.exit(main())

"""How often the parity gate (bench/training/gate.py) would refuse an honest training: docs/false_alarms_of_training.md.

.venv/bin/python tools/false_alarms_of_training.py                     10 minutes for each model and dtype
.venv/bin/python tools/false_alarms_of_training.py --seconds 20 --models gpt2-tiny --out page.md

A seed draws initial parameters and batches of text. The band is measured as `bench.train --baseline eager` does: plain
PyTorch in fp32, from parameters moved by a unit in the last place, and as its users write it. Judged by it are honest
stand-ins, none of which the band was made of: the registry's PyTorch variants and its C++ kernels, plain PyTorch with
the sequences of a batch turned round, one at a time, and with two threads.
"""

import argparse
import random
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from bench.core import variants  # noqa: E402
from bench.models import choose  # noqa: E402
from bench.models.program import step_calls  # noqa: E402
from bench.trainer import beside  # noqa: E402
from bench.training import STEPS, WARM_UP, rooms  # noqa: E402
from bench.training.gate import Gate  # noqa: E402
from bench.training.rooms import Job, NumpyBatch, OurRoom, Room, TorchRoom  # noqa: E402
from reference.models import MODELS  # noqa: E402
from tools.false_alarms import tail_beyond, upper_bound  # noqa: E402

LENGTH = WARM_UP + STEPS  # steps of a training, as bench.e2e's
B, T, LR = 2, 16, 3e-4
TOKENS = 512  # of the vocabulary: most of a small model's time would be the classifier's
KINDS = {"loss": "loss", "gradient norm": "norm"}  # and all others are of one parameter's gradient
SHOWN = (1, 3, 6, LENGTH)  # steps whose bands are told

Batches = list[list[NumpyBatch]]
StandIn = Callable[[int, Batches], list[Any]]  # from a seed and the batches to the trajectory


@dataclass
class Row:
    """What was seen of one model and dtype. A training that is judged is one seed of one stand-in."""

    model: str
    dtype: str
    seeds: int = 0
    ratios: dict[str, list[float]] = field(default_factory=dict)  # by stand-in: the worst of a training, in bands
    refused: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)  # what the refused ones left the band with
    bands: list[list[float]] = field(default_factory=list)  # of parameters' gradients, relative, step by step

    @property
    def all(self) -> list[float]:
        return [r for some in self.ratios.values() for r in some]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for each model and dtype")
    parser.add_argument("--models", default="gpt2-tiny,llama2-tiny")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HOME / "docs" / "false_alarms_of_training.md")
    options = parser.parse_args(argv)
    rows: list[Row] = []
    for model in options.models.split(","):
        for dtype in options.dtypes.split(","):
            rows.append(measure(model, dtype, options.seconds, options.seed))
            options.out.write_text(page(rows, options.seconds))
            print(
                f"{model} {dtype}: {len(rows[-1].refused)} of {len(rows[-1].all)}, {max(rows[-1].all):.2f}", flush=True
            )
    return 0


def measure(model: str, dtype: str, seconds: float, seed: int) -> Row:
    """Train with one seed after the other until the time is over, and judge each stand-in."""
    job = Job(replace(MODELS[model], v=TOKENS), B, T, dtype)
    row, order, text = Row(model, dtype), random.Random(f"{model} {dtype} {seed}"), words()
    centre, perturbed, baseline = rooms._Centre(job), TorchRoom(job, "eager", pure=True), TorchRoom(job, "eager")
    honest = stand_ins(job)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        drawn = order.randrange(2**31)
        batches = [drawn_from(text, drawn + t, job.model.v) for t in range(LENGTH)]
        runs = [trained(perturbed, drawn, batches, by) for by in beside.PERTURBED]
        gate = Gate.measured(trained(centre, drawn, batches), [*runs, trained(baseline, drawn, batches)])
        row.seeds += 1
        row.bands.append(gate.later)
        for name, train in honest.items():
            run = train(drawn, batches)
            row.ratios.setdefault(name, []).append(worst(gate, run))
            if excesses := gate.excesses(run):
                row.refused.append(f"{name}, {model} {dtype}, seed {drawn}: {excesses[0]}")
                row.kinds.update({KINDS.get(e.what, "one parameter's gradient") for e in excesses})
    return row


def trained(room: Room, seed: int, batches: Batches, perturbed: int | None = None) -> list[Any]:
    """A trajectory with every parameter's gradient at each step."""
    room.job = replace(room.job, seed=seed)
    if isinstance(room, rooms._Centre):
        room.rounded = replace(room.rounded, seed=seed)
    room.load(perturbed)
    return [room.step(step, LR, details=True) for step in batches]


def stand_ins(job: Job) -> dict[str, StandIn]:
    """Each honest stand-in by name."""
    plain = TorchRoom(job, "eager", pure=True)

    def turned(seed: int, batches: Batches) -> list[Any]:
        return trained(plain, seed, [[(x[::-1].copy(), y[::-1].copy()) for x, y in step] for step in batches])

    def one_at_a_time(seed: int, batches: Batches) -> list[Any]:
        return trained(plain, seed, [rooms._sliced(step, B) for step in batches])

    def two_threads(seed: int, batches: Batches) -> list[Any]:
        torch.set_num_threads(2)
        try:
            return trained(plain, seed, batches)
        finally:
            torch.set_num_threads(1)

    found: dict[str, StandIn] = {"turned round": turned, "one at a time": one_at_a_time, "two threads": two_threads}
    for spec in ("torch.eager", "cpu"):
        room = OurRoom(job)
        pool = choose.candidates(
            choose.parse(spec), variants.discover(), step_calls(job.model, B, T, job.dtype), "cpu", job.dtype
        )
        room.build({id: some[0] for id, some in pool.items()})
        found[f"kernels of {spec.partition('.')[0]}"] = partial(trained, room)
    return found


def worst(gate: Gate, run: list[Any]) -> float:
    """The largest distance from the centre, in units of the band."""
    found = [gate.worst(run, "loss"), gate.worst(run, "norm")]
    for t, (step, centre) in enumerate(zip(run, gate.centre, strict=True)):
        found += [abs(step["norms"][name] - norm) / gate.band_of(t, norm) for name, norm in centre["norms"].items()]
    return max(found)


def words() -> np.ndarray:
    """Bytes of Python's own library, as `bench.train` takes where nothing is named."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]
    return np.frombuffer(b"".join(f.read_bytes() for f in files), np.uint8)


def drawn_from(text: np.ndarray, seed: int, vocabulary: int) -> list[NumpyBatch]:
    """One micro-batch."""
    starts = np.random.default_rng(seed).integers(0, len(text) - T - 1, B)
    tokens = np.stack([text[s : s + T + 1] for s in starts]).astype(np.int64) % vocabulary
    return [(tokens[:, :-1].copy(), tokens[:, 1:].copy())]


def page(rows: list[Row], seconds: float) -> str:
    runs, refused = sum(len(r.all) for r in rows), sum(len(r.refused) for r in rows)
    bound = upper_bound(refused, runs)
    lines = [
        "# How often an honest training is refused by the parity gate",
        "",
        f"Written by `tools/false_alarms_of_training.py --seconds {seconds:g}` (torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, one thread of a CPU), vocabularies of {TOKENS}, B = {B}, T = {T}, "
        f"{LENGTH} steps at a learning rate of {LR:g}.",
        "",
        f"{runs:,} honest trainings of {sum(r.seeds for r in rows):,} seeds, {refused} of them refused: with 95 % "
        f"confidence fewer than one in {1 / bound:,.0f}.",
        "",
        "A ratio is the largest distance of a training from the centre, in bands: loss, gradient norm, and the norm of "
        "each parameter's gradient at each step. `tail`: the rate beyond one band if the largest twentieth of the "
        "ratios is a power law (Hill 1975).",
        "",
        "| model | dtype | seeds | trainings | refused | largest ratio | bound (95 %) | tail | largest of |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for r in rows:
        largest = max(r.ratios, key=lambda name: max(r.ratios[name]))
        lines.append(
            f"| {r.model} | {r.dtype} | {r.seeds:,} | {len(r.all):,} | {len(r.refused)} | {max(r.all):.2f} | "
            f"{upper_bound(len(r.refused), len(r.all)):.1e} | {tail_beyond(r.all, 1.0):.0e} | {largest} |"
        )
    lines += [
        "",
        "What just escapes: the band of the norm of a parameter's gradient, relative, in half of all trainings and "
        "in one of twenty. A gradient that is off by less, all of it by one factor, is not seen by its norm; one that "
        "is only turned is never seen by it, which is what spot checks are for ([training.md](training.md)).",
        "",
        "| model | dtype | " + " | ".join(f"step {t}" for t in SHOWN) + " |",
        "|---|---|" + "--:|" * len(SHOWN),
    ]
    for r in rows:
        at = [np.percentile([band[t - 1] for band in r.bands], [50, 95]) * 100 for t in SHOWN]
        lines.append(f"| {r.model} | {r.dtype} | " + " | ".join(f"{a:.2g} %, {b:.2g} %" for a, b in at) + " |")
    if refused:
        kinds = sum((r.kinds for r in rows), Counter())
        told = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
        lines += ["", f"Refused ({told}; at most five of a row are shown):", ""]
        lines += [f"- {text}" for r in rows for text in r.refused[:5]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

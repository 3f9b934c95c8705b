"""What `bench.e2e` says in the end: the gate's verdict, speed and MFU, where the step's time went, what swaps did.

One Record (bench/records/record.py) a contestant: ours, `ours, LAYER=VARIANT` for each swap, and PyTorch's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from bench.core import stats
from bench.core.variants import Variant
from bench.machine import facts
from bench.models import UPDATE, CallId
from bench.models.choose import Times
from bench.records.record import Change, Mfu, Record
from bench.show import columns
from bench.show.limits import ranks_nothing, widest_half
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console, print_machine
from bench.show.texts import DASH, duration, number, percent
from bench.training.field import Entrant
from bench.training.gate import Excess, Gate, Trajectory
from bench.training.pick import Choice, Picked
from bench.training.plan import Plan, Turn
from bench.training.rooms import Built, InContext, Job

COLUMNS = (
    *("layer", "variant", "dtype", "device", "status", "evidence", "shape.B", "shape.T", "shape.accumulation"),
    *("threads", "median_s", "low_s", "high_s", "noise", "cpu_median_s", "tokens_per_s", "peak_bytes"),
    *("mfu_palm_of_ceiling", "mfu_llmc_of_ceiling", "mfu_palm_of_datasheet", "mfu_llmc_of_datasheet"),
    *("speedup", "speedup_low", "speedup_high", "baseline", "first_loss", "last_loss", "worst_loss", "worst_norm"),
    *("predicted_alone_s", "predicted_in_context_s", "change_s", "change_low_s", "change_high_s"),
    *("planned_bytes", "graph", "graph_evidence", "utc", "run", "reproduce"),
)
SHOWN_EXCESSES = 5
OTHER_MACHINE = 0.3  # so much longer or shorter a step with clocks inside is not by the clocks
GATED = ("loss", "norm")
PARTS = {
    "layers_s": "all layers",
    "gaps_s": "gaps: batches, clipping, Python between calls",
    "remainder_s": "remainder: timed steps without these clocks",
    "step_s": "step",
}
GPU_PARTS = PARTS | {
    "gaps_s": "gaps: batches, loss, clipping, waits for launches",
    "remainder_s": "remainder: what the graph saves of plain launches",
}


@dataclass(frozen=True)
class Trained:
    """The steps that were taken, by contestant."""

    plan: Plan
    trajectories: Mapping[str, Trajectory]

    @property
    def job(self) -> Job:
        return self.plan.job


@dataclass(frozen=True)
class Out:
    """Why somebody takes part no longer, or never did: a record's status and evidence."""

    status: str
    evidence: str


@dataclass(frozen=True)
class Measured(Trained):
    """All that a session found out so far, by contestant where nothing else is said. A simulated one has no times."""

    turns: list[Turn]  # that all entrants have had; trajectories may be longer
    caught_up: dict[str, int]  # of who came late: the steps before, which were not timed
    entrants: list[Entrant]  # ours first
    out: dict[str, Out]  # who is none any more
    gate_runs: list[Trajectory]  # PyTorch's: the centre, and perturbed ones
    updates: dict[str, list[Excess | str]]  # of ours: what is wrong besides: an update, a step by itself, its process
    picked: Picked
    swaps: dict[str, Choice]  # by what was written
    built: dict[str, Built]  # of ours
    recipes: dict[str, str]  # of PyTorch's: what each is, in words
    peak_bytes: dict[str, int]
    in_context: dict[str, list[InContext]]  # of ours; empty where there was no time for it, or is none yet
    matmul_peaks: dict[str, float | None]  # FLOP/s by where they are from
    notes: list[str]  # what the page must say
    stopped: str  # why there are fewer turns than planned
    failed: Out | None = None  # how our step did, in the turn after these

    @property
    def steps(self) -> int:
        """How many all entrants have taken."""
        return self.turns[-1].steps.stop if self.turns else 0


def print_choice(choice: Choice, times: Times) -> None:
    """Print which variant serves which call, with what it took and the nearest other candidate."""
    title = "kernels of our step (ms a call, measured alone; second best behind)"
    sheet = Sheet(title, [Col("layer/shape"), Col("forward", prose=True), Col("backward", prose=True)])
    for layer, shape in dict.fromkeys((id.layer, id.shape) for id in choice):
        cells = []
        for phase in ("forward", "backward"):
            key = CallId(layer, shape, phase)
            if key not in choice:
                cells.append(DASH)
                continue
            ranked = sorted(times.ms.get(key, {}).items(), key=lambda pair: pair[1])
            told = [f"{name} {ms:.3g}" for name, ms in ranked[:2]] or [f"{choice[key].name} (named)"]
            cells.append(",\n".join(told))
        sheet.add(f"{layer}/{shape}" if shape else layer, *cells)
    sheet.print(console())


def _of_contestant(s: Trained, name: str, steps: Trajectory) -> Record:
    """Which steps a record is of, and what they came to, judged or not."""
    known = Record(
        case_id=f"{s.job.model.name} {name}",
        layer=s.job.model.name,
        variant=name,
        phase="step",
        dtype=s.job.dtype,
        device=s.job.device,
        threads=s.job.threads,
        shape=dict(B=s.job.B, T=s.job.T, accumulation=s.job.accumulation),
        reproduce=" ".join(["python", "-m", "bench.e2e", *s.plan.argv]),
        machine=facts.snapshot(),
    )
    if steps:
        known |= Record(
            first_loss=steps[0]["loss"],
            last_loss=steps[-1]["loss"],
            losses=[x["loss"] for x in steps],
            norms=[x["norm"] for x in steps],
        )
    return known


def begun(plan: Plan, name: str, built: Built, picked: Picked) -> Record:
    """The record of our step when it is built and has taken no step."""
    row = _of_contestant(Trained(plan, {}), name, []) | Record(status="skipped", evidence="built; no step taken yet")
    return row | _of_ours(plan, built, picked.choice, picked.chosen)


def _of_ours(plan: Plan, built: Built, choice: Choice, chosen: str) -> Record:
    """What our step is made of."""
    row = Record(
        planned_bytes=built.bytes,
        kernels={str(key): v.name for key, v in choice.items()},
        recompute=list(plan.job.recompute),
        saved_bytes=built.saved_bytes,
    )
    if chosen:
        row["chosen"] = chosen
    if plan.gpu:
        row["graph"], row["graph_evidence"] = built.graph, built.graph_evidence
    return row


def _excluded(s: Trained, name: str, out: Out) -> Record:
    """The record of somebody who takes part no longer, or never did."""
    steps = s.trajectories.get(name, [])
    row = _of_contestant(s, name, steps) | Record(status=out.status, evidence=out.evidence)
    return row | Record(samples=[[x["wall_s"]] for x in steps]) if steps else row


def unjudged(s: Trained, why: str) -> list[Record]:
    """Records of the steps that were taken before the run ended early, or before somebody ended it (then `why` is
    empty): their losses and times, and no verdict."""
    total = s.plan.turns[-1].steps.stop
    done = {name: steps for name, steps in s.trajectories.items() if steps}
    return [
        _of_contestant(s, name, steps)
        | Record(
            status="skipped",
            evidence=f"{'stopped' if why else 'interrupted'} after {len(steps)} of {total} steps, not judged"
            + (f": {why}" if why else ""),
            samples=[[x["wall_s"]] for x in steps],
        )
        for name, steps in done.items()
    ]


class Judged:
    """What follows from a session's losses and norms alone: are our steps inside PyTorch's band? A subclass says it."""

    def __init__(self, measured: Measured):
        """measured: with a turn at least that everybody has had."""
        self.s = measured
        self.steps = {e.name: measured.trajectories[e.name][: measured.steps] for e in measured.entrants}
        self.swap_of = {e.name: e.swap for e in measured.entrants}  # "" for what is no swap
        self.ours = [e.name for e in measured.entrants if e.ours]
        self.theirs = [e.name for e in measured.entrants if not e.ours]
        centre, *perturbed = (run[: measured.steps] for run in measured.gate_runs)
        self.gate = Gate.measured(centre, [*perturbed, *(self.steps[n] for n in self.theirs)])
        self.excesses = {n: [*self.gate.excesses(self.steps[n]), *measured.updates[n]] for n in self.ours}
        self.parity = not any(self.excesses.values())

    def judged_row(self, name: str) -> Record:
        """A record's fields that are no times."""
        s, steps = self.s, self.steps[name]
        row = _of_contestant(s, name, steps) | Record(
            status="wrong" if self.excesses.get(name) else "ok",
            evidence="; ".join(map(str, self.excesses.get(name, [])[:SHOWN_EXCESSES])),
            planned_bytes=None,
        )
        loss, norm = self.gate.worst(steps, "loss"), self.gate.worst(steps, "norm")
        if np.isfinite([loss, norm]).all():
            row |= Record(worst_loss=loss, worst_norm=norm)
        if s.stopped:
            row["stopped"] = s.stopped
        if s.failed and name == self.ours[0]:
            row |= Record(status=s.failed.status, evidence=s.failed.evidence)
        return row | _of_ours(s.plan, s.built[name], self._choice(name), s.picked.chosen) if name in self.ours else row

    def records(self) -> list[Record]:
        raise NotImplementedError

    def document(self) -> dict[str, object]:
        raise NotImplementedError

    def print(self) -> None:
        raise NotImplementedError

    def excluded(self) -> list[Record]:
        """The rows of who takes part no longer."""
        return [_excluded(self.s, name, out) for name, out in self.s.out.items()]

    def _choice(self, name: str) -> dict[CallId, Variant]:
        return {**self.s.picked.choice, **self.s.swaps.get(self.swap_of[name], {})}

    def print_gate(self, screen: Console) -> None:
        if self.parity:
            worst = {what: max(self.gate.worst(self.steps[n], what) for n in self.ours) for what in GATED}
            screen.print(
                f"parity: ok over {len(self.gate.centre)} steps. Furthest from PyTorch, of the band: "
                f"loss {percent(worst['loss'])}, gradient norm {percent(worst['norm'])}.",
                style="green",
                highlight=False,
            )
            return
        for name, excesses in self.excesses.items():
            if excesses:
                screen.print(f"parity: FAILED for {name}; no MFU is given", style="bold red", highlight=False)
            for excess in excesses[:SHOWN_EXCESSES]:
                screen.print(f"  {excess}", highlight=False)
            if len(excesses) > SHOWN_EXCESSES:
                screen.print(f"  … and {len(excesses) - SHOWN_EXCESSES} more", highlight=False)


class Simulated(Judged):
    """A step whose GPU kernels the simulator ran: the gate's verdict and the losses, and no times."""

    def records(self) -> list[Record]:
        rows = [self.judged_row(e.name) for e in self.s.entrants]
        rows = [row | Record(status="simulated") if row["status"] == "ok" else row for row in rows]
        return rows + self.excluded()

    def document(self) -> dict[str, object]:
        return {"parity": self.parity, "contestants": self.records()}

    def print(self) -> None:
        screen = console()
        screen.print()
        self.print_gate(screen)
        job, names = self.s.job, [e.name for e in self.s.entrants]
        title = f"{job.model.name} {job.dtype}, B={job.B} T={job.T}: loss, in the simulator, no times"
        sheet = Sheet(title, [Col(name, right=True) for name in ("step", "PyTorch fp32", *names)])
        for i, step in enumerate(self.gate.centre):
            ours = [f"{self.steps[name][i]['loss']:.6f}" for name in names]
            sheet.add(str(i + 1), f"{step['loss']:.6f}", *ours)
        sheet.print(screen)


class Report(Judged):
    """Everything that follows from a session's steps."""

    def __init__(self, measured: Measured):
        super().__init__(measured)
        job = measured.job
        rounds = [turn.timed for turn in measured.turns if turn.timed]
        self.rounds = {  # which of them a contestant was timed in
            n: [timed for timed in rounds if timed.start >= measured.caught_up.get(n, 0)] for n in self.steps
        }
        self.walls, self.cpus = (
            {n: [[t[i][what] for i in timed] for timed in self.rounds[n]] for n, t in self.steps.items()}
            for what in ("wall_s", "cpu_s")
        )
        self.tokens = job.B * job.T * job.accumulation
        self.flops = job.model.flops_per_token(job.T)
        self.calls = measured.plan.calls
        self.peaks = measured.matmul_peaks
        timed = [n for n in self.theirs if self.walls[n]]
        self.baseline = min(timed, key=lambda n: stats.median_ci(self.walls[n])[0], default=None)
        self.changes = {text: self._change(text) for text in measured.swaps if text in self.swap_of.values()}
        self.rows = [self._row(e.name) for e in measured.entrants]
        self.timed = [row for row in self.rows if "median_s" in row]

    def _ratio(self, a: str, b: str) -> stats.Interval:
        """Of two contestants' times, by the rounds that both were timed in."""
        both = [timed for timed in self.rounds[a] if timed in self.rounds[b]]
        of_a, of_b = ([[self.steps[n][i]["wall_s"] for i in timed] for timed in both] for n in (a, b))
        return stats.paired_ratio_ci(of_a, of_b)

    def _untimed(self, name: str) -> Record:
        """The row of somebody whose steps were judged, none of them timed."""
        row = self.judged_row(name)
        samples = [[x["wall_s"]] for x in self.steps[name]]
        if row["status"] == "ok":
            so_far = f"{self.s.steps} of {self.s.plan.turns[-1].steps.stop} steps taken, none timed yet"
            row |= Record(status="skipped", evidence=self.s.stopped or so_far)
        return row | Record(samples=samples)

    def _row(self, name: str) -> Record:
        if not self.walls[name]:
            return self._untimed(name)
        median, low, high = stats.median_ci(self.walls[name])
        row = self.judged_row(name) | Record(
            timer="span" if self.s.plan.gpu else "wall",
            samples=self.walls[name],
            cpu_samples=self.cpus[name],
            median_s=median,
            low_s=low,
            high_s=high,
            noise=stats.noise(self.walls[name]),
            cpu_median_s=stats.median_ci(self.cpus[name])[0],
            tokens_per_s=self.tokens / median,
            peak_bytes=self.s.peak_bytes[name],
        )
        if self.baseline and name != self.baseline and set(self.rounds[self.baseline]) & set(self.rounds[name]):
            speedup, least, most = self._ratio(self.baseline, name)
            row |= Record(speedup=speedup, speedup_low=least, speedup_high=most, baseline=self.baseline)
        if self.parity:
            row |= self._mfu(median)
        if self.s.in_context.get(name):
            row["in_context_clock"] = self.s.in_context[name][0].clock
            row["in_context_s"] = {str(key): ms / 1e3 for key, ms in self.layer_ms(name).items()}
        if name in self.ours and (alone := self.alone_ms(name)):
            row["alone_s"] = {str(key): ms * self._calls(key) / 1e3 for key, ms in alone.items()}
        return row | (self.changes.get(self.swap_of[name]) or Change())

    def _mfu(self, seconds: float) -> Mfu:
        """MFU by both conventions against both peaks; None where a peak is not known."""
        rate = {name: flops * self.tokens / seconds for name, flops in self.flops.items()}
        peaks = {where: self.peaks.get(where) for where in ("ceiling", "datasheet")}
        share = {(n, where): rate[n] / peak if peak else None for n in rate for where, peak in peaks.items()}
        return Mfu(
            mfu_palm_of_ceiling=share["palm", "ceiling"],
            mfu_palm_of_datasheet=share["palm", "datasheet"],
            mfu_llmc_of_ceiling=share["llmc", "ceiling"],
            mfu_llmc_of_datasheet=share["llmc", "datasheet"],
        )

    def layer_ms(self, name: str) -> dict[CallId, float]:
        """In-context milliseconds a step of each call: the median over the instrumented steps."""
        steps = [step.ms for step in self.s.in_context[name]]
        return {key: float(np.median([s[key] for s in steps])) for key in steps[0]}

    def alone_ms(self, name: str) -> dict[CallId, float]:
        """Milliseconds of one call of each call measured on its own; what was not is missing."""
        swaps = self.s.picked.swap_times
        races = [swaps[text] for text in swaps if text == self.swap_of[name]] + [self.s.picked.times, *swaps.values()]
        known = {key: [race.ms.get(key, {}).get(v.name) for race in races] for key, v in self._choice(name).items()}
        first = {key: next((ms for ms in times if ms is not None), None) for key, times in known.items()}
        return {key: ms for key, ms in first.items() if ms is not None}

    def records(self) -> list[Record]:
        return self.rows + self.excluded()

    def document(self) -> dict[str, object]:
        return {
            "parity": self.parity,
            "band": {"loss": self.gate.loss, "norm": self.gate.norm, "gradients": self.gate.gradients},
            "contestants": [{k: v for k, v in row.items() if "samples" not in k} for row in self.records()],
            "reconciliation": self.reconciliation() if self.s.in_context else {},
            "swaps": [dict(swap=text, **change) for text, change in self.changes.items() if change],
        }

    # --- the page ---

    def print(self) -> None:
        screen = console()
        screen.print()
        print_machine(screen, self.s.job.threads)
        self.print_gate(screen)
        for note in self.s.notes:
            screen.print(note, style="yellow", highlight=False)
        self._speed_table().print(screen)
        self._print_recipes(screen)
        for name, out in self.s.out.items():
            screen.print(f"{name}: {out.status}: {out.evidence}", style="yellow", highlight=False)
        if self.s.picked.chosen:
            screen.print(f"kernels {self.s.picked.chosen}", highlight=False)
        if self.s.in_context:
            screen.print()
            self._layer_table().print(screen)
        if any(self.changes.values()):
            screen.print()
            self._swap_table().print(screen)

    def _print_recipes(self, screen: Console) -> None:
        """What each contestant is, where its name does not say it."""
        if self.s.plan.gpu:
            for name in self.ours:
                built = self.s.built[name]
                how = "two CUDA graphs" if built.graph else f"plain launches ({built.graph_evidence})"
                screen.print(f"{name}: {how}", highlight=False)
            for name in self.theirs:
                screen.print(f"{name}: {self.s.recipes[name]}", highlight=False)
        if self.s.job.recompute:
            built, what = self.s.built[self.ours[0]], " and ".join(self.s.job.recompute)
            screen.print(
                f"{what} recomputed in backward: {number(built.bytes, 1e6)} MB planned, "
                f"{number(built.saved_bytes, 1e6)} MB saved",
                highlight=False,
            )

    def _speed_table(self) -> Sheet:
        job = self.s.job
        title = f"{job.model.name} {job.dtype}, B={job.B} T={job.T}"
        title += f", {job.accumulation} micro-batches a step" if job.accumulation > 1 else ""
        peaks = [where for where, peak in self.peaks.items() if peak]
        mfu = [f"MFU {convention}\n/ {where}" for convention in ("PaLM", "llm.c") for where in peaks]
        ends = [(f"vs {self.baseline or 'PyTorch'}", 0), *((name, 1) for name in mfu), ("peak MB", 3), ("loss", 2)]
        names = [("time ±95 %", 0), ("CPU time", 5), ("tok/s", 0), *ends, ("of band:\nloss, norm", 4)]
        sheet = Sheet(title, [Col("step by"), *(Col(name, right=True, rank=rank) for name, rank in names)])
        none = ranks_nothing(widest_half(self.timed))
        if none:
            sheet.tell(none, "bold red")
        scale, unit = (1e12, "TFLOP/s") if self.s.plan.gpu else (1e9, "GFLOP/s")
        known = [f"{where} {number(peak, scale)} {unit}" for where, peak in self.peaks.items()]
        sheet.tell(f"MFU of the matmul peak: {', '.join(known)}. Loss: first and last step.")
        for row in self.timed:
            half = (row["high_s"] or np.inf) - row["low_s"]
            speed = DASH
            if "speedup" in row and not none:
                speed = "{speedup:.2f}x [{speedup_low:.2f}, {speedup_high:.2f}]".format(**row)
            sheet.add(
                row["variant"],
                f"{duration(row['median_s'])} {percent(half / 2 / row['median_s']) if np.isfinite(half) else DASH}",
                duration(row["cpu_median_s"]),
                f"{row['tokens_per_s']:,.0f}",
                speed,
                *[columns.COLUMNS[f"mfu_{c}_of_{w}"].told([row]) for c in self.flops for w in peaks],
                number(row["peak_bytes"], 1e6),
                f"{row['first_loss']:.3f}, {row['last_loss']:.3f}",
                ", ".join(percent(row[what]) if what in row else DASH for what in ("worst_loss", "worst_norm")),
            )
        return sheet

    def reconciliation(self) -> dict[str, float]:
        """Seconds: all layers in context, the gaps between them, and what is left of the timed step.

        Layers and gaps come from the steps with a clock around every call, the step from those without. On a GPU, gaps
        are what a step of plain launches takes beyond the layers' kernels, and the remainder is what the graph adds
        to that: it should be below zero.
        """
        steps = self.s.in_context[self.ours[0]]
        layers = sum(self.layer_ms(self.ours[0]).values()) / 1e3
        gaps = float(np.median([step.whole_ms - sum(step.ms.values()) for step in steps])) / 1e3
        step = stats.median_ci(self.walls[self.ours[0]])[0]
        return {"layers_s": layers, "gaps_s": gaps, "remainder_s": step - layers - gaps, "step_s": step}

    def _layer_table(self) -> Sheet:
        clock = self.s.in_context[self.ours[0]][0].clock
        by = f", by the GPU's clock {clock!r}" if self.s.plan.gpu else ""
        parts = GPU_PARTS if self.s.built[self.ours[0]].graph else PARTS
        numbers = [("calls", 3), ("ms a step", 0), ("of step", 0), ("ms a call", 2), ("alone", 1)]
        sheet = Sheet(
            f"where our step goes (ms a step, inside the step{by}; alone: measured on its own)",
            [*map(Col, ("layer/shape", "pass", "variant")), *(Col(name, True, rank) for name, rank in numbers)],
        )
        total = self.reconciliation()
        none = self._no_shares(total)
        if none:
            sheet.tell(none, "bold red")

        def share(part: float) -> str:
            return DASH if none else f"-{percent(-part)}" if part < 0 else percent(part)

        step_ms = total["step_s"] * 1e3
        found, alone = self.layer_ms(self.ours[0]), self.alone_ms(self.ours[0])
        for key in sorted(found, key=found.__getitem__, reverse=True):
            calls = self._calls(key)
            cells = [f"{found[key]:.3g}", share(found[key] / step_ms), f"{found[key] / calls:.3g}"]
            told = f"{alone[key]:.3g}" if key in alone else DASH
            sheet.add(key.place, key.phase, self.s.picked.choice[key].name, str(calls), *cells, told)
        sheet.section()
        for part, seconds in total.items():
            name, _, told = parts[part].partition(": ")
            sheet.add(name, "", "", "", f"{seconds * 1e3:.4g}", share(seconds / total["step_s"]), "", "")
            if told:
                sheet.tell(parts[part])
        return sheet

    def _no_shares(self, total: dict[str, float]) -> str:
        """Why no call has a share of the step: the steps with a clock around every call are taken after the others, and
        where the machine is another one by then their parts do not add up to the whole. "" where they do."""
        if none := ranks_nothing(widest_half(self.timed)):
            return f"no shares of the step: {none}"
        # A graph does without most of what plain launches wait for: of it the layers alone must find room in the step.
        inside = total["layers_s"] + (0.0 if self.s.plan.gpu else total["gaps_s"])
        ratio = inside / total["step_s"]
        if ratio <= 1 + OTHER_MACHINE and (self.s.plan.gpu or ratio >= 1 / (1 + OTHER_MACHINE)):
            return ""
        told = f"with a clock around every call a step took {ratio:.2g} times as long as without"
        return f"no shares of the step: {told}; the machine was another one by then"

    def _calls(self, key: CallId) -> int:
        return self.calls[key].calls * (1 if key.layer in UPDATE else self.s.job.accumulation)

    def _change(self, text: str) -> Change | None:
        """Predicted and measured change of the step by one swap, seconds; None where it could not be measured. Nothing
        before the steps were timed, call by call too."""
        base, other = self.ours[0], next(n for n in self.ours if self.swap_of[n] == text)
        if not (self.walls[base] and self.walls[other] and self.s.in_context):
            return None
        swap, times = self.s.swaps[text], self.s.picked.swap_times[text]
        alone: float | None = 0.0
        for key, v in swap.items():
            if v == self.s.picked.choice[key]:
                continue
            ms = times.ms.get(key, {})
            known = v.name in ms and self.s.picked.choice[key].name in ms
            change = (ms[v.name] - ms[self.s.picked.choice[key].name]) * self._calls(key) / 1e3 if known else None
            alone = None if alone is None or change is None else alone + change
        before, after = self.layer_ms(base), self.layer_ms(other)
        ratio, low, high = self._ratio(other, base)
        median = stats.median_ci(self.walls[base])[0]
        return Change(
            predicted_alone_s=alone,
            predicted_in_context_s=sum(after[k] - before[k] for k in swap) / 1e3,
            change_s=(ratio - 1) * median,
            change_low_s=(low - 1) * median,
            change_high_s=(high - 1) * median,
        )

    def _swap_table(self) -> Sheet:
        names = [("predicted, alone", 2), ("predicted, in context", 1), ("measured [95 %]", 0)]
        sheet = Sheet(
            "swaps: change of the step in ms, predicted and measured",
            [Col("swap"), *(Col(name, right=True, rank=rank) for name, rank in names)],
        )
        for text, change in self.changes.items():
            if change is None:
                continue
            alone, in_context, *measured = map(
                _ms,
                (
                    change["predicted_alone_s"],
                    change["predicted_in_context_s"],
                    change["change_s"],
                    change["change_low_s"],
                    change["change_high_s"],
                ),
            )
            sheet.add(text, alone, in_context, "{} [{}, {}]".format(*measured))
        return sheet


def _ms(seconds: float | None) -> str:
    return DASH if seconds is None else f"{seconds * 1e3:+.3g}"

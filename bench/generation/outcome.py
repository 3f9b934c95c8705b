"""What `bench.generate` says in the end: is ours right, how fast are prompts read and tokens drawn, and how near is
that to what this machine can do.

    MFU    FLOPs of the products in a prefill (every matmul, visible pairs of attention, the head at each sequence's
           last token alone) / its time / FLOP/s of large matmuls, measured by bench.machine.ceilings
    MBU    bytes that a step must read (each weight once, as it is kept; keys and values of the tokens so far, in the
           middle of the text) / its time / bytes/s of the read that bench.machine.ceilings measures

Of others the same FLOPs and bytes are counted, by the dtype that they keep weights in: so shares are comparable.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console

from bench.checkpoints import gguf
from bench.core import stats
from bench.core.variants import Variant
from bench.generation import OWN_CLOCK
from bench.generation.plan import Job, Plan, need
from bench.generation.rooms import Built, Done, Verdict
from bench.machine import facts
from bench.machine.compared import Rest
from bench.models import CallId
from bench.records.record import Record
from bench.show.generation_page import above
from bench.show.limits import ranks_nothing, widest_half
from bench.show.sheet import Col, Sheet
from bench.show.terminal import console, print_machine
from bench.show.texts import DASH, duration, number, percent
from reference.models.llama2 import Llama2

PREFILL, DECODE = "prefill", "decode"
COLUMNS = (
    *("layer", "variant", "phase", "weights", "dtype", "device", "status", "evidence", "shape.B", "shape.T"),
    *("shape.steps", "threads", "median_s", "low_s", "high_s", "noise", "tokens_per_s", "mfu", "mbu", "bytes", "flops"),
    *("floor_s", "first_token_s", "peak_bytes", "planned_bytes", "weight_bytes", "cache_bytes", "error_ratio"),
    *("same_tokens", "checked_tokens", "speedup", "speedup_low", "speedup_high", "baseline", "graph", "utc", "run"),
)


@dataclass
class Entry:
    """One contestant: what is known of it so far."""

    name: str
    job: Job
    ours: bool
    built: Built | None = None  # of ours
    choice: Mapping[CallId, Variant] = field(default_factory=dict)
    chosen: str = ""  # beforehand: in which file, where, when, and what of it is not used
    recipe: str = ""
    rounds: list[Done] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)  # which text each of them wrote
    cut: list[tuple[int, Done]] = field(default_factory=list)  # texts of ours that ended early, for the judge alone
    rest: Rest | None = None  # of its process, between its turns
    awake: str = ""  # that it was at work meanwhile
    verdict: Verdict | None = None
    tokens: list[list[int]] = field(default_factory=list)  # of the text that was asked for, by sequence
    timed: list[Verdict] = field(default_factory=list)  # of texts that were written on the clock
    inside: tuple[dict[str, float], dict[str, float]] = field(default_factory=lambda: ({}, {}))
    peak_bytes: int = 0
    status: str = ""  # why it takes part no longer
    evidence: str = ""

    @property
    def done(self) -> str:
        """The status of one that is not wrong."""
        return "simulated" if self.job.simulate and self.verdict else "ok" if self.rounds else "skipped"

    @property
    def wrong(self) -> str:
        """Why its text is not to be believed, or ""."""
        if self.verdict and self.verdict.wrong:
            return self.verdict.wrong
        if changed := next((d["changed"] for d in self.rounds if d["changed"]), "") or self.awake:
            return f"global_state on the clock: {changed}"
        told = next((v.wrong for v in self.timed if v.wrong), "")
        return f"on the clock: {told}" if told else ""


@dataclass
class Outcome:
    plan: Plan
    entries: list[Entry]
    peaks: Mapping[str, float | None]

    @property
    def ok(self) -> bool:
        return not any(e.wrong for e in self.entries)

    # --- records ---

    def records(self) -> list[Record]:
        return [self._record(e, phase) for e in self.entries for phase in (PREFILL, DECODE) if self._has(e, phase)]

    def _has(self, e: Entry, phase: str) -> bool:
        return phase == PREFILL or e.job.sizes.steps > 1

    def _record(self, e: Entry, phase: str) -> Record:
        s, model = e.job.sizes, e.job.source.model
        row = Record(
            case_id=f"{model.name} {e.name} {phase}",
            layer=model.name,
            variant=e.name,
            story=e.recipe or "registry variants, memory planned once",
            phase=phase,
            dtype=s.dtype,
            weights=e.job.form,
            device=e.job.device,
            threads=e.job.threads,
            shape=dict(B=s.B, T=s.T, S=s.S, steps=s.steps, **({"G": s.group} if s.group else {})),
            reproduce=" ".join(["python", "-m", "bench.generate", *self.plan.argv]),
            machine=facts.snapshot(),
            status=e.status or ("wrong" if e.wrong else e.done),
            evidence=e.evidence or e.wrong,
        )
        if e.ours and e.built:
            b = e.built
            row |= Record(planned_bytes=b.bytes, weight_bytes=b.weight_bytes, cache_bytes=b.cache_bytes)
            if e.chosen:
                row["chosen"] = e.chosen
            row["kernels"] = {str(id): v.name for id, v in e.choice.items()}
            if e.job.gpu:
                row |= Record(graph=b.graph, graph_evidence=b.graph_evidence)
        if v := e.verdict:
            row |= Record(error_ratio=v.error / v.yard, same_tokens=v.same, checked_tokens=v.of)
        if e.rounds and not e.status:
            row |= self._times(e, phase)
        return row

    def samples(self, e: Entry, phase: str) -> list[list[float]]:
        """By round."""
        return [[d["prefill_s"]] if phase == PREFILL else d["step_s"] for d in e.rounds]

    def _times(self, e: Entry, phase: str) -> Record:
        samples, s = self.samples(e, phase), e.job.sizes
        median, low, high = stats.median_ci(samples)
        row = Record(
            timer="span" if e.job.gpu and e.name not in OWN_CLOCK else "wall",
            samples=samples,
            median_s=median,
            low_s=low,
            high_s=high if high != float("inf") else None,
            noise=stats.noise(samples),
            tokens_per_s=(s.B * s.T if phase == PREFILL else s.B) / median,
            peak_bytes=e.peak_bytes or None,
        )
        row |= self._floor(e, phase, median)
        first = next((b for b in self.entries if not b.ours and b.rounds and not b.status), None)
        if first and first is not e:
            theirs = self.samples(first, phase)
            count = min(len(theirs), len(samples))
            speed, least, most = stats.paired_ratio_ci(theirs[:count], samples[:count])
            row |= Record(speedup=speed, baseline=first.name)
            if most != float("inf"):
                row |= Record(speedup_low=least, speedup_high=most)
        if phase == PREFILL:
            row["first_token_s"] = stats.median_ci([[d["first_s"]] for d in e.rounds])[0]
        inside = e.inside[phase == DECODE]
        if inside:
            row["in_context_s"] = inside
        return row

    def _floor(self, e: Entry, phase: str, median: float) -> Record:
        """The work, its least time, and the share of what was measured here."""
        b, dtype = need(e.job), e.job.sizes.dtype
        if phase == PREFILL:
            peak = self.peaks.get(dtype)
            row = Record(flops=b.prefill_flops, flops_per_s=b.prefill_flops / median, ceiling_flops_per_s=peak)
            floor = b.prefill_flops / peak if peak else None
            row["mfu"] = floor / median if floor else None
        else:
            weights = _in_gguf(e.job) if e.name == "llama.cpp" else b.read_weights
            peak, read = self.peaks.get("read"), weights + b.read_cache
            row = Record(bytes=read, bytes_per_s=read / median, ceiling_bytes_per_s=peak)
            row |= Record(read_weights=weights, read_cache=b.read_cache)
            floor = read / peak if peak else None
            row["mbu"] = floor / median if floor else None
        return row | Record(floor_s=floor, of_ceiling=floor / median if floor else None)

    def document(self) -> dict[str, object]:
        texts = [{"variant": e.name, "tokens": e.tokens, "texts": self.texts(e)} for e in self.entries if e.rounds]
        rows = [{k: v for k, v in row.items() if "samples" not in k} for row in self.records()]
        return {"ok": self.ok, "prompt": list(self.plan.job.prompts[0]), "texts": texts, "contestants": rows}

    # --- the page ---

    def texts(self, e: Entry) -> list[str]:
        """Of the last generation, up to where the text ends."""
        codec, found = self.plan.codec, []
        for prompt, ids in zip(e.job.prompts, e.tokens, strict=True):
            whole = ids[: ids.index(codec.end)] if codec.end in ids else ids
            found.append(codec.decode([*prompt, *whole]))
        return found

    def print(self) -> None:
        screen = console()
        print_machine(screen, self.plan.job.threads)
        for e in self.entries:
            self._print_verdict(screen, e)
            if e.status:
                screen.print(f"{e.name}: {e.status}: {e.evidence}", style="yellow", highlight=False, markup=False)
        if any(e.rounds for e in self.entries):
            self._table().print(screen)
        for e in self.entries:
            if e.recipe:
                screen.print(f"{e.name}: {e.recipe}", highlight=False, markup=False)
            if e.ours and e.built and e.job.gpu:
                how = (
                    "a step is one CUDA graph"
                    if e.built.graph
                    else f"plain launches ({e.built.graph_evidence or '--no-graph'})"
                )
                screen.print(f"{e.name}: {how}", highlight=False, markup=False)
            elif e.ours and e.built and e.built.graph_evidence:
                screen.print(f"{e.name}: {e.built.graph_evidence}", highlight=False, markup=False)
        if inside := self._inside_table():
            inside.print(screen)

    def _print_verdict(self, screen: Console, e: Entry) -> None:
        if e.verdict is None:
            return
        v = e.verdict
        if e.wrong:
            screen.print(f"{e.name}: WRONG: {e.wrong}", style="bold red", highlight=False)
            return
        screen.print(
            f"{e.name}: right. Logits are {v.error / v.yard:.2g} times as far off as those of PyTorch's variants; "
            f"{v.same} of {v.of} tokens are the plain network's likeliest",
            style="green",
            highlight=False,
        )

    def _table(self) -> Sheet:
        job = self.plan.job
        s = job.sizes
        rows = {(r["variant"], r["phase"]): r for r in self.records() if "median_s" in r}
        baseline = next((r["baseline"] for r in rows.values() if "baseline" in r), "")
        title = f"{job.source.model.name}, B={s.B}, a prompt of {s.T}, {s.steps} tokens"
        cols = [
            ("prefill tok/s", 0),
            ("MFU", 1),
            ("first token", 1),
            ("decode tok/s", 0),
            ("a step ±95 %", 1),
            ("MBU", 0),
        ]
        more = [("of the floor", 2), *([(f"vs {baseline}", 0)] if baseline else []), ("read MB", 3), ("peak MB", 3)]
        sheet = Sheet(title, [Col("by"), *(Col(name, right=True, rank=rank) for name, rank in [*cols, *more])])
        if none := ranks_nothing(widest_half(r for r in rows.values() if r["phase"] == DECODE)):
            sheet.tell(none, "bold red")
        read, matmul = self.peaks.get("read"), self.peaks.get(s.dtype)
        sheet.tell(
            f"MFU of {number(matmul, 1e9)} GFLOP/s of {s.dtype} matmuls, MBU of {number(read, 1e9)} GB/s read, both "
            "measured here. MBU: bytes of weights and cache that a step reads / its time."
        )
        for why in above(rows.values()):
            sheet.tell(why, "yellow")
        for e in self.entries:
            first, step = rows.get((e.name, PREFILL)), rows.get((e.name, DECODE))
            if first is None:
                continue
            cells = [f"{first['tokens_per_s']:,.0f}", percent(first.get("mfu")), duration(first["first_token_s"])]
            if step is None:
                sheet.add(e.name, *cells, *[DASH] * (len(cols) + len(more) - 4), number(e.peak_bytes or None, 1e6))
                continue
            half = ((step["high_s"] or 0.0) - step["low_s"]) / 2 / step["median_s"] if step.get("high_s") else None
            floor = step.get("floor_s")
            times = f"{step['median_s'] / floor:.2f}x" if floor else DASH
            speed = [f"{step['speedup']:.2f}x" if "speedup" in step and not none else DASH] if baseline else []
            cells += [
                f"{step['tokens_per_s']:,.1f}",
                f"{duration(step['median_s'])} {percent(half)}",
                percent(step.get("mbu")),
            ]
            sheet.add(e.name, *cells, times, *speed, number(step.get("bytes"), 1e6), number(e.peak_bytes or None, 1e6))
        return sheet

    def _inside_table(self) -> Sheet | None:
        """Where a step of the first of ours goes, its largest parts."""
        e = self.entries[0]
        step = e.inside[1]
        if not step:
            return None
        sheet = Sheet(
            "where a step goes (launched call by call, all repetitions)",
            [Col("call"), Col("variant"), Col("ms", True), Col("of all", True)],
        )
        total = sum(step.values())
        names = {str(id): v.name for id, v in e.choice.items()}
        for call in sorted(step, key=step.__getitem__, reverse=True):
            sheet.add(
                call.removesuffix(" forward"),
                names.get(call, DASH),
                f"{step[call] * 1e3:.3g}",
                percent(step[call] / total),
            )
        return sheet


def _in_gguf(job: Job) -> int:
    """Bytes of weights that a step of llama.cpp must read, as they are kept there."""
    model = job.source.model
    assert isinstance(model, Llama2)
    return gguf.bytes_read(model, "q8_0" if job.sizes.group else job.sizes.dtype, job.sizes.B)

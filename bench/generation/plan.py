"""What one run of `bench.generate` is to do: its command line, with what that leaves open filled in."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

from bench import cli
from bench.cli import CannotGoOn
from bench.generation import BASELINES, ROUNDS, SIMULATED_STEPS, STEPS, TIME_LIMIT_S, source
from bench.generation.source import Codec, Source
from bench.machine import facts
from bench.machine.devices import check_device
from bench.models import CallId, choose
from bench.models.inference import GROUP, META, Sizes, inference
from reference.contract import Call

FP32, BF16, Q8 = "fp32", "bf16", "q8_0"


@dataclass(frozen=True)
class Job:
    """What all contestants do: the same prompts, gone on with by so many tokens, with the same weights. `form` is what
    the weights are kept in."""

    source: Source
    prompts: tuple[tuple[int, ...], ...]
    sizes: Sizes
    device: str
    threads: int
    seed: int
    simulate: bool = False

    def text(self, turn: int) -> "tuple[tuple[tuple[int, ...], ...], int]":
        """Prompts and seed of a text: of turn 0 those that were asked for; of any other one prompts as long that nobody
        has read before, for who has need not compute."""
        if not turn:
            return self.prompts, self.seed
        draw = random.Random(turn)
        return tuple(tuple(draw.randrange(self.source.model.v) for _ in p) for p in self.prompts), draw.getrandbits(31)

    @property
    def form(self) -> str:
        return Q8 if self.sizes.group else self.sizes.dtype

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"


@dataclass(frozen=True)
class Plan:
    jobs: tuple[Job, ...]  # ours, one for each form of the weights; the text of the first is printed
    codec: Codec
    baselines: tuple[str, ...]
    spec: choose.Spec
    graph: bool
    rounds: int
    check: bool
    remeasure: bool
    time_limit: float
    race_limit: float  # seconds for measuring the candidates of all jobs
    out: Path | None
    json: bool
    stream: bool  # show the text as it comes, wherever it goes
    argv: tuple[str, ...]

    @property
    def job(self) -> Job:
        return self.jobs[0]


def calls(job: Job) -> dict[CallId, Call]:
    """The calls of ours: their shapes, and how often a prefill and a step make them."""
    return inference(job.source.model, job.sizes, META).shapes


@dataclass(frozen=True)
class Need:
    """What the work of a job takes, whoever does it: bytes that a step must read, of weights as they are kept and of
    keys and values in the middle of the text; FLOPs of a prefill's products."""

    read_weights: int
    read_cache: int
    prefill_flops: int


def need(job: Job) -> Need:
    made = inference(job.source.model, job.sizes, META)
    middle = [len(p) + job.sizes.steps // 2 for p in job.prompts]
    return Need(made.weight_bytes_read, made.cache_bytes_read(middle), made.prefill_flops())


def plan_of(
    *,
    model: str,
    prompt: str | None,
    prompt_ids: str | None,
    prompt_tokens: int | None,
    vocab: Path | None,
    steps: int | None,
    batch: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    kernels: str,
    dtype: str | None,
    quantise: str | None,
    group: int | None,
    ladder: bool,
    baseline: str,
    device: str,
    no_graph: bool,
    simulate: bool,
    no_check: bool,
    threads: int | None,
    rounds: int | None,
    remeasure: bool,
    race_limit: float | None,
    time_limit: float | None,
    out: Path | None,
    json: bool,
    stream: bool,
    argv: list[str],
) -> Plan:
    """The plan of a command line. CannotGoOn for what makes no sense."""
    if simulate:
        device, baseline, no_check = "cpu", "none", False  # nothing is timed, so there is nothing to compare with
    check_device(device)
    if sum(x is not None for x in (prompt, prompt_ids, prompt_tokens)) > 1:
        raise CannotGoOn("--prompt, --prompt-ids and --prompt-tokens exclude each other", cli.USAGE)
    if stream and (json or simulate):
        raise CannotGoOn("--stream shows a text while it is written: not with --json, nor with --simulate", cli.USAGE)
    if not 0 < top_p <= 1:
        raise CannotGoOn(f"--top-p {top_p:g} is not above 0 and at most 1", cli.USAGE)
    if group and not (quantise or ladder):
        raise CannotGoOn("--group goes with --quantise", cli.USAGE)
    of, codec = source.opened(model, seed, vocab, text=bool(prompt))
    longest = max(sizes[1] for sizes in of.model.parameter_shapes().values() if len(sizes) == 2)
    if group and group > longest:
        raise CannotGoOn(f"--group {group}: the longest rows of {of.model.name} have {longest}", cli.USAGE)
    if prompt_tokens:
        source.need_room(prompt_tokens, steps, of.model, STEPS)
        draw = random.Random(seed)
        ids = [draw.randrange(of.model.v) for _ in range(prompt_tokens)]
    else:
        ids = source.tokens_of(prompt_ids, of.model) if prompt_ids else source.prompt_of(codec, prompt, of.model)
    count = source.need_room(len(ids), steps, of.model, SIMULATED_STEPS if simulate else STEPS)
    in_int8 = quantise is not None or (of.group > 0 and dtype is None)  # a quantised file as it is
    dtype, groups = dtype or (BF16 if device != "cpu" else FP32), group or of.group or GROUP
    forms = [(FP32, 0), (BF16, 0), (dtype, groups)] if ladder else [(dtype, groups if in_int8 else 0)]

    def job(kind: str, group: int) -> Job:
        room = len(ids) + count - 1
        drawing = Sizes(batch, len(ids), max(room, len(ids)), kind, group, count, temperature, top_k, top_p)
        return Job(of, (tuple(ids),) * batch, drawing, device, threads or facts.usable_cores(), seed, simulate)

    return Plan(
        jobs=tuple(job(*form) for form in dict.fromkeys(forms)),
        codec=codec,
        baselines=() if baseline == "none" else tuple(cli.choose_all(baseline, BASELINES, "baseline")),
        spec=choose.parse(kernels),
        graph=device != "cpu" and not no_graph,
        rounds=0 if simulate else rounds or ROUNDS,
        check=not no_check,
        remeasure=remeasure,
        time_limit=time_limit or TIME_LIMIT_S,
        race_limit=race_limit or math.inf,
        out=out,
        json=json,
        stream=stream,
        argv=tuple(argv),
    )

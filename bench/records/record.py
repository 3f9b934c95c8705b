"""A record: what is written down about one variant at one case and cache state, one line of records.jsonl; of a
training step one a contestant.

The classes below are the table of its fields: type, group, what each says. Times are seconds, sizes bytes, rates a
second; shares and ratios are plain fractions. What was not measured is absent or null, never a guess.

Of which kind a field is where it is there and not null (Text, Number, …) is checked when a run is read: a reader relies
on it. Fields that no reader calculates with or joins to others have a plain type and no check.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, TypedDict, TypeGuard, get_args, get_type_hints

from bench.core.replies import is_finite
from bench.machine.facts import State

Check = Callable[[object], bool]
Size = int | float | str
AGES = 1e12  # seconds: no time that was measured


# --- kinds ---


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_time(value: object) -> bool:
    return is_number(value) and 0 < value < AGES


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_rounds(value: object) -> bool:
    return isinstance(value, list) and all(_is_numbers(turn) and turn and min(turn) >= 0 for turn in value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _is_size(value: object) -> bool:
    """A number, a word, a flag, none; or lists of sizes (a model's parameters)."""
    return all(map(_is_size, value)) if isinstance(value, list) else not isinstance(value, dict)


def _is_sizes(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_size, value.values()))


def _is_canary(value: object) -> bool:
    return isinstance(value, dict) and _is_rates(value) and {"cold", "warm"} <= value.keys()


def _is_rates(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and _is_rates({k: v for k, v in value.items() if k != "gpus" and v is not None})


Text = Annotated[str, is_text]
Number = Annotated[float, is_number]
Count = Annotated[int, is_number]
Time = Annotated[float, _is_time]
Flag = Annotated[bool, _is_flag]
Sizes = Annotated[dict[str, Size], _is_sizes]
Rates = Annotated[dict[str, float], _is_rates]
Canary = Annotated[dict[str, float], _is_canary]
Machine = Annotated[State, _is_state]
Numbers = Annotated[list[float], _is_numbers]
Rounds = Annotated[list[list[float]], _is_rounds]
Texts = Annotated[list[str], _is_texts]


# --- groups ---


class Identity(TypedDict, total=False):
    """Which case of which run."""

    schema: Annotated[int, "of the file, see bench/records/schema.py"]
    run: Annotated[Text, "name of the run's folder"]
    utc: Annotated[Text, "when it was written down"]
    case_id: Annotated[Text, "the same case of the same source has the same id in every run; --resume goes by it"]
    layer: Annotated[Text, "of a step: the model"]
    variant: Annotated[Text, "of a step: the contestant, `ours, LAYER=VARIANT` for a swap"]
    story: Annotated[Text, "the variant's, in a sentence"]
    phase: Annotated[Text, "forward, backward, or step"]
    dtype: Annotated[Text, "the working dtype"]
    device: Annotated[Text, "cpu, cuda:0"]
    shape_name: Annotated[Text, "gpt2-124m/qkv; proof where the proof alone was asked for"]
    shape: Annotated[Sizes, "sizes and options; of a step B, T and accumulation: micro-batches a step"]
    calls: Annotated[Count | None, "how often one training step makes this call (0: only an unfused step does)"]
    source_hash: Annotated[Text, "of the variant's files and its backend's shared ones"]
    outside: Annotated[Flag, "of another root than this repository's: --kernels DIR, an installed package"]
    reproduce: Annotated[Text, "the command that measures it again"]


class Proof(TypedDict, total=False):
    """Whether it is right."""

    status: Annotated[Text, "ok, or wrong, impossible, error, crash, timeout, skipped; simulated: right, and no time"]
    evidence: Annotated[Text, "what was seen"]
    error_ratio: Annotated[Number | None, "worst error over all proof cases, in yards (limit 4: trial/accuracy.py)"]
    proof_cases: Annotated[Count, "how many cases proved it, …"]
    proof_cases_all: Annotated[Count, "… of how many that its contract has"]
    not_supported: Annotated[Texts, "what of the contract it does not have, by its own words (kernels.Unavailable)"]
    compared: Annotated[Text, "which of an output's elements were judged: whole is all of them"]
    notes: Annotated[Texts, "what was seen of it that is no fault, with a hint"]
    seeds: Annotated[list[int], "with which seeds"]
    verified_calls: Annotated[int, "timed calls whose outputs were judged too"]
    deterministic: Annotated[Flag | None, "two calls gave the same bits"]
    sanitizer: Annotated[str, "ok, or why compute-sanitizer said nothing (--sanitize)"]
    check: Annotated[str, "bench.sanitize: which check failed"]
    tool: Annotated[str, "bench.sanitize: of compute-sanitizer"]
    seed: Annotated[int, "bench.sanitize: of its inputs"]


class Times(TypedDict, total=False):
    """What only a right result may show."""

    samples: Annotated[Rounds, "of each call by `timer`, a list a round (busy: the union of its kernels' intervals)"]
    cpu_samples: Annotated[list[list[float]], "process-CPU time of the same calls; a GPU's rows have none"]
    median_s: Annotated[Time, "of the rounds, …"]
    low_s: Annotated[Number, "… with the 95 % bootstrap interval over rounds and processes"]
    high_s: Annotated[Number | None, "its upper end; null where a single round has none"]
    noise: Annotated[Number | None, "interquartile range / median of all samples"]
    cpu_median_s: Annotated[float, "of a step: process-CPU seconds"]
    bytes_per_s: Annotated[Number, "at the median"]
    flops_per_s: Annotated[Number, "at the median"]
    tokens_per_s: Annotated[Number, "of a step, at the median"]
    of_ceiling: Annotated[Number | None, "floor_s / median_s"]
    speedup: Annotated[Number, "against the fastest PyTorch entry of the case; above 1 is faster"]
    speedup_low: Annotated[Number, "95 % interval"]
    speedup_high: Annotated[Number, "95 % interval"]


class Conditions(TypedDict, total=False):
    """How it was timed, and how far the times can be trusted."""

    cache: Annotated[Text | None, "cold or warm"]
    cold_only_s: Annotated[Number, "of a call, as it warmed up, where it is too slow to be timed warm as well"]
    timer: Annotated[Text, "clock of the samples"]
    threads: Annotated[Count, "CPU threads that were used (in records without the next, 0 is torch's choice)"]
    threads_asked: Annotated[Count, "what --threads asked for; 0 is torch's choice"]
    control: Annotated[Flag, "the second entry of the A/A control: for the noise floor, never ranked"]
    processes: Annotated[list[int], _is_numbers, "which process each round was measured in"]
    noise_floor: Annotated[Number | None, "relative; from the A/A control of this case"]
    baseline: Annotated[Text, "the PyTorch entry of the speedup"]
    stopped: Annotated[Text, "why no more rounds were taken"]
    canary: Annotated[Canary | None, "bytes/s of a read of so many bytes after the flush (cold) and without it (warm)"]
    machine: Annotated[Machine | None, "load, frequency and throttling while it ran (bench.machine.facts.snapshot)"]
    compile_s: Annotated[Number, "one-time work before the first call"]


class Work(TypedDict, total=False):
    """What must be done, and the least time it can take."""

    flops: Annotated[Count, "useful operations"]
    bytes: Annotated[Count, "compulsory traffic"]
    floor_s: Annotated[Number | None, "the least time both allow at measured ceilings"]
    ceiling_bytes_per_s: Annotated[Number | None, "that ceiling, of this mix of reads and writes"]
    ceiling_flops_per_s: Annotated[Number | None, "that ceiling, of this dtype"]
    datasheet_bytes_per_s: Annotated[Number, "GPU: its maker's, where known (bench.machine.roofline)"]
    datasheet_flops_per_s: Annotated[Number | None, "the same of operations"]
    saved_bytes: Annotated[Count, "kept for backward; of a step: what recomputing spares"]
    workspace_bytes: Annotated[Count, "scratch"]


class OnGpu(TypedDict, total=False):
    """What a GPU's row tells beside its times."""

    span_s: Annotated[Number, "by events around a call that was queued behind a spin: kernels and the gaps between"]
    span_samples: Annotated[list[list[float]], "of it"]
    host_s: Annotated[Number, "that launching a call takes the host, median over the spans"]
    launch_s: Annotated[Number, "its share of each kernel, copy and fill of `kernels_ran`"]
    launch_bound: Annotated[Number | None, "share of a span, or of host_s, in which the GPU waits, if it is large"]
    graph_s: Annotated[Number, "warm: a call's share of a replayed CUDA graph of many calls"]
    graph_samples: Annotated[list[list[float]], "of it"]
    graph: Annotated[bool, "whether our step was captured as CUDA graphs"]
    graph_evidence: Annotated[Text | None, "why there is no graph"]
    kernels_ran: Annotated[dict[str, int], "in one call, how often by name (shortened). Kernels, copies and fills"]
    uncopied_s: Annotated[Number, "of a library: the median without the copies that end a call; others meet this one"]
    copies: Annotated[dict[str, int], "those copies of its results to where the contract wants them, as kernels_ran"]
    peak_bytes: Annotated[Count | None, "inside a call, beyond arguments and workspace; of a step: in use at most"]
    energy_j: Annotated[Number | None, "of a warm call, by the card's counter between two ticks, 0.4 s or more apart"]
    sm_mhz: Annotated[Number | None, "median clock over the turns"]
    throttled: Annotated[Text | None, "the reasons, in words, why it was lowered in any of them"]


class Resources(TypedDict, total=False):
    """By compiling the row's call for its GPU, or a simulated one's for sm_90a; absent where that cannot be done."""

    kernels: Annotated[int | dict[str, str], "launches; of our step the variant of each call, by `layer/shape phase`"]
    registers: Annotated[Count, "of a thread, in the worst of them"]
    spill_bytes: Annotated[Count, "of a thread, in the worst of them"]
    shared_bytes: Annotated[Count, "of a block, in the worst of them"]
    occupancy: Annotated[Number | None, "of the worst of them"]
    tensor_core_instructions: Annotated[Count, "in the machine code"]
    wide_instructions: Annotated[Count, "in the machine code: those that move 128 bits"]


class Counts(Resources, total=False):
    """What the simulator counts of one call."""

    counted_shape: Annotated[str, "counts and resources of a simulated row are of one call at this shape"]
    configuration: Annotated[Text, "tiles of a Triton variant's tables, default or tuned; what of a library ran"]
    sectors: Annotated[int, "32-byte sectors of global memory asked for"]
    moved_of_minimum: Annotated[Number | None, "their bytes over the compulsory ones"]
    sectors_per_request: Annotated[Number | None, "a request is one instruction of a warp"]
    sectors_of_ideal: Annotated[Number | None, "ideal is fully coalesced"]
    shared_wavefronts: Annotated[int, "passes over the banks of shared memory"]
    wavefronts_of_ideal: Annotated[Number | None, "above 1 there are bank conflicts"]


class Change(TypedDict, total=False):
    """The step's change by a swap: predicted (null where a time is not known), and measured with its interval."""

    predicted_alone_s: Annotated[Number | None, "as times measured alone predict it"]
    predicted_in_context_s: Annotated[Number, "as in_context_s of both steps does"]
    change_s: Annotated[Number, "as the steps' own times have it"]
    change_low_s: Annotated[Number, "95 % interval"]
    change_high_s: Annotated[Number, "95 % interval"]


class Mfu(TypedDict, total=False):
    """Model FLOPs utilisation by two conventions, of two peaks. Absent where the gate failed."""

    mfu_palm_of_ceiling: Annotated[Number | None, "PaLM's, of what was measured here"]
    mfu_llmc_of_ceiling: Annotated[Number | None, "llm.c's, of what was measured here"]
    mfu_palm_of_datasheet: Annotated[Number | None, "PaLM's, of the maker's"]
    mfu_llmc_of_datasheet: Annotated[Number | None, "llm.c's, of the maker's"]


class Step(Change, Mfu, total=False):
    """Of a training step."""

    losses: Annotated[Numbers, "of every step, warm-up included"]
    norms: Annotated[list[float], "of every step, warm-up included"]
    first_loss: Annotated[Number, "of losses"]
    last_loss: Annotated[Number, "of losses"]
    worst_loss: Annotated[Number, "furthest from PyTorch, of the band that its own runs span; above 1 it is wrong"]
    worst_norm: Annotated[Number, "the same of norms"]
    chosen: Annotated[Text, "ours: kernels chosen beforehand: in which file, where, when; what of it was not used"]
    planned_bytes: Annotated[int | None, "ours: planned before anything runs"]
    recompute: Annotated[list[str], "ours: outputs that backward computes again"]
    in_context_s: Annotated[Rates, "ours: of each call of `kernels`, all its repetitions, inside the step, …"]
    in_context_clock: Annotated[str, "… by this clock"]
    alone_s: Annotated[Rates, "ours: measured on its own, where it was: a call's time by its calls a step"]


class Generation(TypedDict, total=False):
    """Of text that is generated: one row for reading the prompts (prefill), one for a step after them (decode)."""

    weights: Annotated[Text, "what they are kept in: fp32, bf16, q8_0"]
    first_token_s: Annotated[Number, "prefill: until the first token is known, by the host's clock"]
    mfu: Annotated[Number | None, "prefill: flops / median_s of the matmul rate that was measured here"]
    mbu: Annotated[Number | None, "decode: bytes / median_s of the read bandwidth that was measured here"]
    read_weights: Annotated[Count, "decode: bytes of weights that a step reads; with read_cache they are `bytes`"]
    read_cache: Annotated[Count, "decode: bytes of keys and values that a step reads, in the middle of the text"]
    weight_bytes: Annotated[Count, "ours: of all weights, as they are kept"]
    cache_bytes: Annotated[Count, "ours: of the cache, as it was planned"]
    same_tokens: Annotated[Count, "ours: of the checked ones, those that the plain network takes too"]
    checked_tokens: Annotated[Count, "ours: how many were checked"]


class Part(TypedDict, total=False):
    """Of a suite's part: one command."""

    seconds: Annotated[float, "that it took"]
    model: Annotated[str, "whose shapes"]
    command: Annotated[str, "as it was started"]


class Record(Identity, Proof, Times, Conditions, Work, OnGpu, Counts, Step, Generation, Part, total=False):
    """All of them."""


# --- the table ---


def _check_of(hint: object) -> Check | None:
    """The first check inside an annotation: of Annotated[Time | None, "…"] that of Time."""
    own = (said for said in getattr(hint, "__metadata__", ()) if callable(said))
    return next(own, None) or next((check for part in get_args(hint) if (check := _check_of(part))), None)


TABLE: Mapping[str, object] = get_type_hints(Record, include_extras=True)  # Annotated, by field
CHECKS: dict[str, Check] = {name: check for name, hint in TABLE.items() if (check := _check_of(hint))}

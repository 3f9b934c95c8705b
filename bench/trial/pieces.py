"""What `bench.suite` runs, in small pieces by worth, and how long each will take as far as is known by then."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from bench import HOME
from bench.cli import CannotGoOn
from bench.core.variants import Variant, discover, libraries_lie_here
from bench.gpu import TOOLS
from bench.machine import facts
from bench.machine.devices import is_gpu
from bench.models import chosen
from bench.trial import GPU_TIMED_B, STAGES
from reference import contract
from reference.models import MODELS

# Of FIRST on a GPU, at shapes as large: without tensor cores a call takes what all the others are timed in.
SLOW_RUNGS = ("*.naive", "cuda.shared")
FIRST = ("attention", "matmul")  # then the others, those first that move the most bytes in a training step
CORES_A_PROOF = 4  # so many let another proof run beside: nothing is timed then
HANG_SECONDS = 10.0  # for one call on a GPU (bench.layer --time-limit), and five times that for a first one
# Guesses in seconds until pieces have been finished: of a start; of a proof, a look and a set-up of one variant's pass;
# of a case's rounds; of the steps.
START, PROOF, LOOK, SET_UP = 6.0, 3.0, 1.0, 1.5
ROUNDS = {True: 2.5, False: 6.0}  # on a GPU; on a CPU
QUICK_STEP, STEP, GENERATE, SANITIZE, DOCTOR = 75.0, 150.0, 75.0, 40.0, 15.0
GENERATES = "llama2-15m"  # where the model that is asked for is larger


@dataclass(frozen=True)
class Piece:
    """One command. Where it writes is added to its arguments."""

    name: str  # and its folder under DIR
    kind: str  # pieces of a kind take what they are guessed times one factor
    command: Callable[[float], list[str]]  # Python's arguments, fitted to so many seconds
    guess: float  # seconds
    least: float | None = None  # it may be cut down to so many seconds; None: whole or not at all
    alone: bool = False  # it is timed: nothing runs beside it
    fresh: bool = False  # in a process of its own
    resumes: bool = False  # has a --resume of its own, and goes on where it was cut short


@dataclass(frozen=True)
class What:
    """What a suite is asked for."""

    device: str
    stage: str  # of STAGES, or all
    layers: tuple[str, ...]
    model: str
    batch: int
    kernels: tuple[str, ...]  # folders of more variants
    proofs: Path  # DIR/proofs
    data: Path | None = None  # that the step trains on, as bench.e2e --data

    @property
    def gpu(self) -> bool:
        return is_gpu(self.device)

    @property
    def at_once(self) -> int:
        """How many pieces that are not timed run side by side. On a CPU a proof uses all cores by itself."""
        return max(1, facts.usable_cores() // CORES_A_PROOF) if self.gpu else 1


def queue_of(what: What) -> list[Piece]:
    """All pieces, the worthiest first: whatever the time is good for, its first part is the best to have.

    One look at every kernel; the training step, quick; attention and matmul; the machine; what is bound by memory, each
    layer proved before it is timed; proofs in the other dtype; the training step against torch.compile; a text from a
    small model; the sanitizer.
    On a CPU the machine first, for its ceilings, and the step after matmul.
    """
    layers = by_worth(what)
    variants = [v for v in discover(tuple(map(Path, what.kernels))) if v.layer in what.layers]
    timed = [v for v in variants if not any(fnmatch(v.name, rung) for rung in _left_out(what, v.layer))]
    timed_dtype, other = ("bf16", "fp32") if what.gpu else ("fp32", "bf16")

    def proofs_of(layers: Iterable[str], dtype: str) -> list[Piece]:
        return [proof(what, layer, dtype, _rows(what, variants, layer, dtype)) for layer in layers]

    def timings_of(layers: Iterable[str]) -> list[Piece]:
        return [
            timing(what, layer, phase, timed_dtype, _rows(what, timed, layer, timed_dtype, phase))
            for layer in layers
            for phase in contract.phases_of(contract.load(layer))
        ]

    first, rest = [n for n in layers if n in FIRST], [n for n in layers if n not in FIRST]
    doctor = Piece("doctor", "doctor", lambda _: ["-m", "bench.doctor", "--json"], DOCTOR, alone=True, fresh=True)
    queue = [] if what.gpu else [doctor]
    if what.gpu:
        queue += [smoke(what, layer, _rows(what, variants, layer, timed_dtype)) for layer in layers]
        queue.append(quick_step(what))
    for group in (first, *(rest[i : i + what.at_once] for i in range(0, len(rest), what.at_once))):
        queue += [*proofs_of(group, timed_dtype), *timings_of(group)]
        if group is first:
            queue.append(doctor if what.gpu else step(what))
    queue += proofs_of(layers, other)
    if what.gpu:
        queue += [step(what), text(what), *(sanitize(what, tool) for tool in TOOLS)]
    wanted = {"doctor", *(kind for stage, kinds in STAGES.items() if what.stage in (stage, "all") for kind in kinds)}
    only_timed = what.stage == "time"  # whose proofs come before, and the other dtype's not at all
    return [p for p in queue if p.kind in wanted and not (only_timed and p.name.endswith(f"-{other}"))]


def _left_out(what: What, layer: str) -> tuple[str, ...]:
    """What of a layer is proved and not timed."""
    return SLOW_RUNGS if what.gpu and layer in FIRST else ()


def by_worth(what: What) -> list[str]:
    """Layers in the order of FIRST, then by the bytes that they move in a training step."""
    moved = {layer: _bytes_a_step(what, layer) for layer in what.layers}
    rank = {layer: i for i, layer in enumerate(FIRST)}
    return sorted(what.layers, key=lambda layer: (rank.get(layer, len(FIRST)), -moved[layer], layer))


def _bytes_a_step(what: What, layer: str) -> int:
    module = contract.load(layer)
    return sum(
        call.calls * contract.min_bytes(module, contract.overwriting(module, phase, call.shape, "bf16"), phase)
        for phase in contract.phases_of(module)
        for call in _calls(what, layer).values()
    )


def _calls(what: What, layer: str) -> dict[str, contract.Call]:
    model = MODELS[what.model]
    return model.shapes(layer, what.batch, min(contract.DEFAULT_T, model.max_t))


def _rows(what: What, variants: list[Variant], layer: str, dtype: str, phase: str | None = None) -> int:
    """How many passes of variants a piece looks at."""
    here = [v for v in variants if v.layer == layer and dtype in v.dtypes]
    here = [v for v in here if (v.gpu_code or v.backend == "torch" if what.gpu else not v.gpu_code)]
    here = [v for v in here if libraries_lie_here(v)]  # a row that is skipped takes no time
    phases = [phase] if phase else contract.phases_of(contract.load(layer))
    return sum(v.has(p) for v in here for p in phases)


# --- the pieces ---


def smoke(what: What, layer: str, rows: int) -> Piece:
    command = ["-m", "bench.layer", layer, "--smoke", "-a", "dtype=bf16", *common(what)]
    return Piece(f"smoke-{layer}", "smoke", lambda _: command, START + LOOK * rows)


def proof(what: What, layer: str, dtype: str, rows: int) -> Piece:
    command = ["-m", "bench.layer", layer, "--check-only", *shapes(what, dtype), *kept(what), *common(what)]
    guess = START + PROOF * rows
    return Piece(f"check-{layer}-{dtype}", "check", lambda _: command, guess, START + PROOF, resumes=True)


def timing(what: What, layer: str, phase: str, dtype: str, rows: int) -> Piece:
    shapes_of_it = max(1, len(_calls(what, layer)))
    command = ["-m", "bench.layer", layer, "--pass", phase, *shapes(what, dtype), *kept(what), *common(what)]
    if left_out := _left_out(what, layer):
        command += ["--without", ",".join(left_out)]
    rounds = ROUNDS[what.gpu]

    def fitted(seconds: float) -> list[str]:
        # More than half of the time is for starting and setting up.
        return [*command, "--seconds", f"{min(rounds, max(0.3, 0.4 * seconds / shapes_of_it)):.2g}"]

    guess = START + shapes_of_it * (SET_UP * rows + rounds)
    return Piece(f"time-{layer}-{phase}", "time", fitted, guess, START + SET_UP * rows, alone=True, resumes=True)


def quick_step(what: What) -> Piece:
    """A few steps beside eager PyTorch."""

    def fitted(seconds: float) -> list[str]:
        return [*_training(what, seconds, QUICK_STEP), "--baseline", "eager", "--steps", "4"]

    return Piece("e2e-quick", "e2e", fitted, QUICK_STEP, QUICK_STEP / 2, alone=True, fresh=True)


def step(what: What) -> Piece:
    def fitted(seconds: float) -> list[str]:
        command = _training(what, seconds, STEP)
        # On a GPU eager's fp32 logits would have the batch halved for all.
        return [*command, "--baseline", "compile-plain,compile"] if what.gpu else command

    return Piece("e2e", "e2e", fitted, STEP, QUICK_STEP / 2, alone=True, fresh=True)


def text(what: What) -> Piece:
    """A small model's text, read and written, beside eager PyTorch. Choosing kernels is what takes long: of the time it
    gets a share, and what is not measured by then is served by who is quickest at the nearest call."""
    model = min(what.model, GENERATES, key=lambda name: MODELS[name].parameters)
    command = ["-m", "bench.generate", model, "--device", what.device, "--json", "--baseline", "eager"]
    command += ["--prompt-tokens", "64", "--steps", "64"]

    def fitted(seconds: float) -> list[str]:
        return [*command, "--race-limit", f"{max(1.0, 0.3 * seconds):.0f}", "--time-limit", f"{max(1.0, seconds):.0f}"]

    return Piece("generate", "generate", fitted, GENERATE, 0.8 * GENERATE, alone=True, fresh=True)


def _training(what: What, seconds: float, most: float) -> list[str]:
    """bench.e2e with a time of its own, which ends it in order a little before ours would."""
    minutes = max(0.2, (min(seconds, 1.3 * most) - 5) / 60)
    before = chosen_beforehand(what)
    kernels = ["--kernels", str(before)] if before else []
    data = ["--data", str(what.data)] if what.data else []
    return [
        "-m",
        "bench.e2e",
        what.model,
        "--device",
        what.device,
        "--json",
        "--minutes",
        f"{minutes:.2f}",
        *kernels,
        *data,
    ]


def chosen_beforehand(what: What) -> Path | None:
    """Which kernels serve the step, without a race: the latest choice that is committed for this GPU. What of it no
    longer holds bench.e2e races anew."""
    chip = _chip(what)
    found: list[tuple[str, Path]] = []
    for file in (HOME / "results").rglob("kernels.json"):
        with contextlib.suppress(CannotGoOn):
            found += [(c.utc, file) for c in [chosen.read(file)] if (c.chip, c.model) == (chip, what.model)]
    return max(found)[1] if found else None


def _chip(what: What) -> str:
    """The GPU's name as a choice of kernels tells it, without a CUDA context; "" for none."""
    number = what.device.partition(":")[2]
    gpus = facts.gpus() if what.gpu else []
    return next((str(gpu["name"]) for gpu in gpus[int(number) if number.isdigit() else 0 :]), "")


def sanitize(what: What, tool: str) -> Piece:
    """Its own limit ends it a little before ours would, with a row for every variant."""
    which = "all" if set(what.layers) == set(contract.layer_names()) else ",".join(what.layers)
    command = ["-m", "bench.sanitize", which, "--tools", tool, "--device", what.device, *more_kernels(what)]

    def fitted(seconds: float) -> list[str]:
        return [*command, "--time-limit", f"{max(1.0, seconds - 8):.0f}"]

    return Piece(f"sanitize-{tool}", "sanitize", fitted, SANITIZE, SANITIZE / 2)


def shapes(what: What, dtype: str) -> list[str]:
    return ["--shape", what.model, "-a", f"B={what.batch}", "-a", f"dtype={dtype}"]


def kept(what: What) -> list[str]:
    return ["--proofs", str(what.proofs.resolve())]


def common(what: What) -> list[str]:
    hangs = ["--time-limit", f"{HANG_SECONDS:g}"] if what.gpu else []
    return ["--device", what.device, "--no-simulate", *hangs, *more_kernels(what)]


def more_kernels(what: What) -> list[str]:
    return [part for folder in what.kernels for part in ("--kernels", str(Path(folder).resolve()))]


def batch_of(device: str, asked: int | None) -> int:
    """On a GPU large enough that a launch's ramps do not hide a layer's rate."""
    return asked or (GPU_TIMED_B if is_gpu(device) else contract.DEFAULT_B)


# --- how long they take ---


class Estimates:
    """Seconds of a piece: its guess, times what the finished pieces of its kind took over theirs."""

    def __init__(self) -> None:
        self.guessed: defaultdict[str, float] = defaultdict(float)  # by kind
        self.taken: defaultdict[str, float] = defaultdict(float)

    def learn(self, piece: Piece, seconds: float, cut_short: bool = False) -> None:
        """What a piece took. One that was cut short says only that it takes longer."""
        if cut_short and seconds <= self.of(piece):
            return
        self.guessed[piece.kind] += piece.guess
        self.taken[piece.kind] += seconds

    def of(self, piece: Piece) -> float:
        if not self.guessed[piece.kind]:
            return piece.guess
        return piece.guess * self.taken[piece.kind] / self.guessed[piece.kind]


def piece_named(folder: str, pieces: Iterable[Piece]) -> Piece | None:
    """Whose folder this is: one that began anew has a number behind its name."""
    names = {p.name: p for p in pieces}
    return names.get(folder) or names.get(re.sub(r"-\d+$", "", folder))

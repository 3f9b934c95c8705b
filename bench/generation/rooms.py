"""What happens inside a contestant's process: weights are taken, prompts are read, and tokens drawn, on the clock.

The methods of the rooms are the commands that `bench.generation.contestants.Contestant` sends.
"""

import functools
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from bench import simulate
from bench.cli import CANNOT_RUN, USAGE, CannotGoOn
from bench.core import deeds, replaced, world
from bench.core.case import DTYPES
from bench.core.variants import Variant, discover, find
from bench.generation.drawn import strange
from bench.generation.plan import Job, calls
from bench.machine import ceilings, compared
from bench.machine.devices import is_gpu, open_device
from bench.models import CallId, choose
from bench.models.cached import cached
from bench.models.calls import Call
from bench.models.choose import Times
from bench.models.engine import Engine
from bench.models.inference import META, dequantised, inference, quantised_rows
from reference.models.llama2 import Llama2
from reference.models.model import Model
from reference.models.plain import network

LIMIT = 4.0  # yards that an error may have, as in the proof of a layer
EXACT = 1 << 30  # parameters: up to so many truth is worked out in fp64, beyond it in fp32
TABLES = ("wte", "wpe")  # rows of which are looked up
MOST_FORCED = 4096  # tokens of a text whose own yard is worked out where it seems wrong
ROW = list[float]  # logits of one sequence at one step


class Done(TypedDict):
    """One generation. Seconds of reading the prompts, until their first token was known, and of each step after it (or
    of their mean, where there is no clock around each); what was drawn, by sequence. Of ours also the logits that the
    last tokens were drawn from, and what changed in its process meanwhile."""

    prefill_s: float
    first_s: float
    step_s: list[float]
    tokens: list[list[int]]
    last: list[ROW]
    changed: str


@dataclass(frozen=True)
class Built:
    """Ours as it was bound: bytes of all memory it will ever use, of its weights and cache; whether a step is a graph,
    or why not."""

    bytes: int
    weight_bytes: int
    cache_bytes: int
    graph: bool
    graph_evidence: str


@dataclass(frozen=True)
class Verdict:
    """Logits of ours against the plain network's: the worst error, in logits, that of PyTorch's own variants at the
    same calls (the yard), how many tokens the plain network would have taken too, and which token nobody draws from
    logits that are as near."""

    error: float
    yard: float
    same: int
    of: int
    strange: str = ""

    @property
    def wrong(self) -> str:
        """Why a text is not to be believed, or ""."""
        if not self.error <= LIMIT * self.yard:
            times = f"{self.error / self.yard:.3g} times as far as those of PyTorch's variants"
            return f"logits are off by {self.error:.3g}: {times}"
        return self.strange


class Room(compared.Room):
    """What every contestant can be asked."""

    def __init__(self, job: Job):
        super().__init__(open_device(job.device), is_gpu(job.device), job.threads)
        self.job = job
        self.model, self.sizes = job.source.model, job.sizes

    def ready(self) -> str:
        """Set up; a line on what it is."""
        raise NotImplementedError

    def run(self, turn: int = 0) -> Done:
        """One generation, of that turn's text (plan.Job.text)."""
        raise NotImplementedError

    def _first(self, prefill: Callable[[], object], read: Callable[[], object]) -> tuple[float, float]:
        """Seconds of a prefill by the device's clock, and by the host's until `read` has its token."""
        self.device.synchronize()
        start = time.perf_counter()
        with self.device.timer(self.clock) as timer:
            timer.start()
            prefill()
            timer.stop()
            read()
            first_s = time.perf_counter() - start
        return timer.seconds[0], first_s

    def _steps(self, step: Callable[[], object]) -> list[float]:
        """Seconds of each step after the first token; on a GPU of their mean: nothing waits for the host between."""
        count = self.sizes.steps - 1
        together = count if self.on_gpu else 1
        with self.device.timer(self.clock) as timer:
            for _ in range(0, count, together or 1):
                timer.start()
                for _ in range(together):
                    step()
                timer.stop()
        return [s / together for s in timer.seconds]

    def rounded(self) -> dict[str, torch.Tensor]:
        """fp32 weights with the values that ours computes with: rounded to the working dtype, of matrices that are
        multiplied in int8 what their groups say. Tables, a head that is one of them included, keep the dtype's."""
        found, group, kind = self.job.source.weights(), self.sizes.group, DTYPES[self.sizes.dtype]
        named = {name: dequantised(*pair, found.group) for name, pair in found.quantised.items()} | dict(found.named)
        in_int8 = inference(self.model, self.sizes, META).quantised if group else {}
        for name, value in named.items():
            if name in in_int8 and name not in TABLES:
                named[name] = dequantised(*quantised_rows(value.float(), group), group)
            else:
                named[name] = value.to(kind).float()
        return named

    def fill(self, engine: Engine) -> None:
        """Give ours, or its like, the weights."""
        found = self.job.source.weights()
        if found.quantised and found.group != self.sizes.group:
            engine.load({n: dequantised(*pair, found.group) for n, pair in found.quantised.items()} | dict(found.named))
        else:
            engine.load(found.named, found.quantised)


class OurRoom(Room):
    """Registry variants."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.made = inference(self.model, self.sizes, self.device)

    def race(self, pool: dict[CallId, list[Variant]], **limits: float) -> Times:
        """Time candidates at the calls (see bench.models.choose.race_calls). What was loaded is lost."""
        self.made.fill_random()
        shapes = {id: call.shape for id, call in self.made.shapes.items()}
        made = [item for item in [*self.made.prefill, *self.made.decode] if isinstance(item, Call)]
        return choose.race_calls(made, shapes, self.device, pool, tell=self.tell, **limits)

    def build(self, choice: dict[CallId, Variant], graph: bool = False) -> Built:
        """Bind the calls to the chosen variants, take the weights, and with `graph` record the step."""
        if self.job.simulate:
            for backend in {v.backend for v in choice.values() if v.gpu_code}:
                simulate.install(backend)
        deeds.guard()  # before any of them is there
        self.seal = replaced.sealed()
        self.functions = {name: value for name, value in world.take().items() if name in world.OF_FUNCTIONS}
        modules = {id: variant.load() for id, variant in choice.items()}
        self.engine = Engine(self.made, modules, self.device)
        self.fill(self.engine)
        self.device.forget_peak()
        evidence = self.engine.capture() if graph else None
        if not self.on_gpu and not self.job.simulate:
            evidence = self.engine.record()
        # A replay allocates nothing: what its kernels hold for a while was allocated when the graph was recorded.
        self.recorded_peak = self.device.memory()[1] if graph else 0
        return Built(
            bytes=self.engine.bytes,
            weight_bytes=self.made.weight_bytes,
            cache_bytes=self.made.cache_bytes,
            graph=graph and evidence is None,
            graph_evidence=evidence or "",
        )

    def ready(self) -> str:
        return ""

    def peak_bytes(self) -> int:
        return max(super().peak_bytes(), self.recorded_peak)

    def run(self, turn: int = 0) -> Done:
        return self._run(turn, self._steps)

    def cut(self, turn: int, steps: int) -> Done:
        """As `run`, but the text ends after so many steps, of which no kernel can know beforehand: the logits of that
        step are those of any."""

        def some(step: Callable[[], object]) -> list[float]:
            for _ in range(steps - 1):
                step()
            return []

        return self._run(turn, some)

    def _run(self, turn: int, go_on: Callable[[Callable[[], object]], list[float]]) -> Done:
        self.engine.begin(*self.job.text(turn))
        before = world.take() | self.functions
        with deeds.Watch() as watch:
            prefill_s, first_s = self._first(self.engine.prefill, self.made.token.tolist)
            step_s = go_on(self.engine.step)
        changed = watch.evidence() or world.difference(world.settled(before), world.take())
        tokens, last = self.engine.tokens(), self._row()
        return Done(prefill_s=prefill_s, first_s=first_s, step_s=step_s, tokens=tokens, last=last, changed=changed)

    def stream(self, end: int | None) -> list[list[int]]:
        """One generation that nobody times: each step's tokens, by sequence, are told as they come, until every text
        has had the token `end`. What was drawn."""
        over = [False] * self.sizes.B

        def each(tokens: list[int]) -> bool:
            self.tell(tokens)
            over[:] = [done or token == end for done, token in zip(over, tokens, strict=True)]
            return not all(over)

        return self.engine.generate(self.job.prompts, self.sizes.steps, self.job.seed, each)

    def inside(self) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds of each call of a prefill and of a step, launched one by one (see Engine.timed)."""
        self.engine.begin(self.job.prompts, self.job.seed)
        prefill = self.engine.timed(prefill=True, clock=self.clock)
        step = self.engine.timed(prefill=False, clock=self.clock) if self.sizes.steps > 1 else {}
        return {str(id): s for id, s in prefill.items()}, {str(id): s for id, s in step.items()}

    def logits(self, steps: int) -> tuple[list[list[int]], list[list[ROW]]]:
        """What is drawn in so many steps, by sequence, and each step's logits, by step and sequence."""
        self.engine.begin(self.job.prompts, self.job.seed)
        self.engine.prefill()
        found = [self._row()]
        for _ in range(steps - 1):
            self.engine.step()
            found.append(self._row())
        return self.engine.tokens(), found

    def _row(self) -> list[ROW]:
        return self.made.logits[:, : self.model.v].float().cpu().tolist()


class JudgeRoom(Room):
    """The plain network of reference/models in fp64 (a large one in fp32), with the weights that ours computes with."""

    def __init__(self, job: Job):
        super().__init__(job)
        self.prompts, self.seed = job.text(0)

    def judge(self, drawn: list[list[int]], logits: list[list[ROW]]) -> Verdict:
        """Logits of ours after each prompt and the tokens it drew itself, against those of one forward pass over all of
        them: so decoding is held to what a whole pass says."""
        ours, steps = torch.tensor(logits).transpose(0, 1), len(logits)  # (B, steps, V)
        truth = self._truth(drawn, steps)
        yard = (self._forced(drawn, steps) - truth).abs().max().item()
        of_truth = truth.argmax(-1)
        same = int((of_truth == torch.tensor(drawn)).sum())
        error, yard = (ours - truth).abs().max().item(), max(yard, self._least(truth))
        odd = (self._odd(truth[b], b, tokens, LIMIT * yard) for b, tokens in enumerate(drawn))
        return Verdict(error, yard, same, of_truth.numel(), next(filter(None, odd), ""))

    def judge_text(self, turn: int, drawn: list[list[int]], lasts: list[list[ROW]], yard: float) -> Verdict:
        """A text that was written on the clock, or shown: whether its tokens are draws, and the logits of its last
        step, in each generation that came to this text, where they are told. By the yard of the steps that were judged
        before; where that is passed, by that of all steps."""
        self.prompts, self.seed = self.job.text(turn)
        verdict = self._judged_text(drawn, lasts, yard)
        if verdict.wrong and len(drawn[0]) * len(drawn) <= MOST_FORCED:
            truth = torch.stack([self._truth_of(b, ids) for b, ids in enumerate(drawn)])
            own = (self._forced(drawn, len(drawn[0])) - truth).abs().max().item()
            verdict = self._judged_text(drawn, lasts, max(yard, own))
        return verdict

    def _judged_text(self, drawn: list[list[int]], lasts: list[list[ROW]], yard: float) -> Verdict:
        error, same, odd = 0.0, 0, ""
        for b, tokens in enumerate(drawn):  # one after the other: logits of all are large
            truth = self._truth_of(b, tokens)
            error = max([error, *(_distance(truth[-1], last[b]) for last in lasts)])
            same += int((truth.argmax(-1) == torch.tensor(tokens)).sum())
            odd = odd or self._odd(truth, b, tokens, LIMIT * yard)
        return Verdict(error, yard, same, sum(map(len, drawn)), odd)

    def _odd(self, truth: torch.Tensor, b: int, tokens: list[int], off: float) -> str:
        """What is strange about a sequence's tokens; truth (steps, V)."""
        s = self.job.sizes
        u = torch.rand(s.steps, s.B, generator=torch.Generator().manual_seed(self.seed))
        told = strange(truth, tokens, u[: len(tokens), b].tolist(), s, off)
        return f"sequence {b}: {told}" if told else ""

    def _truth_of(self, b: int, tokens: list[int]) -> torch.Tensor:
        """(steps, V) of one sequence."""
        with torch.no_grad():
            found = self._net()(torch.tensor([[*self.prompts[b], *tokens[:-1]]]))
        return found[0, -len(tokens) :, : self.model.v].float()

    def _least(self, truth: torch.Tensor) -> float:
        """A unit in the last place of the largest logit: nothing can be asked to be nearer."""
        return truth.abs().max().item() * torch.finfo(DTYPES[self.sizes.dtype]).eps

    def _texts(self, drawn: list[list[int]]) -> torch.Tensor:
        return torch.tensor([[*p, *d[:-1]] for p, d in zip(self.prompts, drawn, strict=True)])

    @functools.cache  # noqa: B019  # one room a process
    def _net(self) -> Any:
        net = network(self.model)
        net.load(self.rounded())
        return net.double() if self.model.parameters <= EXACT else net

    @torch.no_grad()
    def _truth(self, drawn: list[list[int]], steps: int) -> torch.Tensor:
        return self._net()(self._texts(drawn))[:, -steps:, : self.model.v].float()

    def _forced(self, drawn: list[list[int]], steps: int) -> torch.Tensor:
        """The same calls by PyTorch's own variants: every token read is one that ours drew."""
        found = discover()
        modules = {id: find(found, id.layer, "torch.eager").load() for id in calls(self.job)}
        made = inference(self.model, self.sizes, self.device)
        engine = Engine(made, modules, self.device)
        self.fill(engine)
        engine.begin(self.prompts, self.seed)
        engine.prefill()
        rows = [made.logits[:, : self.model.v].float().clone()]  # the next step writes them anew
        for step in range(1, steps):
            made.token.copy_(torch.tensor([d[step - 1] for d in drawn]))
            engine.step()
            rows.append(made.logits[:, : self.model.v].float().clone())
        return torch.stack(rows, 1).cpu()

    def peaks(self) -> dict[str, float | None]:
        """Of this device, measured here or before: bytes/s read, and FLOP/s of large matmuls by dtype."""
        if not self.on_gpu:
            ceilings.look_again()
        found = ceilings.ceilings(device=self.job.device)
        return {"read": found.bytes_per_s.get("read"), **found.flops_per_s}


def _distance(truth: torch.Tensor, row: ROW) -> float:
    """The largest; infinite where one is not finite."""
    found = (torch.tensor(row) - truth).abs().max().item()
    return found if math.isfinite(found) else math.inf


class PlainRoom(Room):
    """PyTorch as its users write it: the plain network with a static cache, `compile`: through torch.compile, the step
    and the prefill by themselves (on a GPU in mode reduce-overhead, which is CUDA graphs)."""

    def __init__(self, job: Job, mode: str):
        super().__init__(job)
        self.mode = mode

    @torch.no_grad()
    def ready(self) -> str:
        kind = DTYPES[self.sizes.dtype]
        net = network(self.model)
        net.load(self.rounded())
        net = net.to(kind).to(self.device.place)
        self.net = cached(self.model, net, self.sizes.B, self.sizes.S, kind).to(self.device.place)
        self.prefill: Any = self.net
        self.step: Any = self.net
        said = "plain PyTorch with a static cache of keys and values"
        if self.mode == "compile":
            mode = "reduce-overhead" if self.on_gpu else "default"
            self.prefill, self.step = (torch.compile(self.net, mode=mode) for _ in range(2))
            said += f", torch.compile in mode {mode}"
        self.run()
        return said

    @torch.no_grad()
    def run(self, turn: int = 0) -> Done:
        place = self.device.place
        tokens = torch.tensor(self.job.text(turn)[0], device=place)
        positions, T = torch.arange(self.sizes.S, device=place), tokens.shape[1]
        drawn: list[torch.Tensor] = []

        def prefill() -> None:
            drawn.append(self._drawn(self.prefill(tokens, positions[:T])))

        def step() -> None:
            at = T + len(drawn) - 1
            drawn.append(self._drawn(self.step(drawn[-1], positions[at : at + 1])))

        prefill_s, first_s = self._first(prefill, lambda: drawn[0].tolist())
        step_s = self._steps(step)
        return Done(
            prefill_s=prefill_s,
            first_s=first_s,
            step_s=step_s,
            tokens=torch.cat(drawn, 1).tolist(),
            last=[],
            changed="",
        )

    def _drawn(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, 1): the likeliest token; how it is drawn takes no time beside the network."""
        return logits[:, : self.model.v].argmax(-1, keepdim=True).clone()


# Of a baseline: the name that its package is imported by, and the one that it is installed by.
PACKAGES = {"transformers": ("transformers", "transformers"), "llama.cpp": ("llama_cpp", "llama-cpp-python")}


def need(baseline: str, model: Model) -> None:
    """CannotGoOn where the package of a baseline is not installed, or the baseline does not know the model."""
    module, package = PACKAGES.get(baseline, ("", ""))
    if baseline == "llama.cpp" and type(model) is not Llama2:
        why = f"is given Llama 2 alone, and {model.name} is of the family {model.family}"
        raise CannotGoOn(f"--baseline {baseline}: {why}", USAGE)
    if module and importlib.util.find_spec(module) is None:
        raise CannotGoOn(f"--baseline {baseline}: the package {package} is not installed", CANNOT_RUN)


class TransformersRoom(Room):
    """Hugging Face's generate() on the same weights, greedy."""

    net: Any

    def ready(self) -> str:
        import transformers

        from bench.checkpoints import hugging_face

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory(prefix="layerbench-") as folder:
            kind = DTYPES[self.sizes.dtype]
            named = {name: w.to(kind) for name, w in self.rounded().items()}
            written = hugging_face.write_folder(Path(folder) / "model", named, self.model)
            auto: Any = transformers.AutoModelForCausalLM
            self.net = auto.from_pretrained(written, dtype=kind).to(self.device.place).eval()
        self.run()
        return f"transformers {transformers.__version__}, generate(), {self.net.config._attn_implementation} attention"

    @torch.no_grad()
    def run(self, turn: int = 0) -> Done:
        """The first token's time is that of a generation of one; a step's is what more of them take, by their
        number."""
        self.prompts, _ = self.job.text(turn)
        first_s, _ = self._generated(1)
        steps = self.sizes.steps - 1
        if not steps:
            first_s, tokens = self._generated(1)
            return Done(prefill_s=first_s, first_s=first_s, step_s=[], tokens=tokens, last=[], changed="")
        whole_s, tokens = self._generated(1 + steps)
        step_s = [max(0.0, whole_s - first_s) / steps]
        return Done(prefill_s=first_s, first_s=first_s, step_s=step_s, tokens=tokens, last=[], changed="")

    def _generated(self, count: int) -> tuple[float, list[list[int]]]:
        tokens = torch.tensor(self.prompts, device=self.device.place)
        self.device.synchronize()
        start = time.perf_counter()
        found = self.net.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        drawn = found[:, tokens.shape[1] :].tolist()
        return time.perf_counter() - start, drawn

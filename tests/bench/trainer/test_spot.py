"""Spot checks: cheats of tests/evil_training are seen, with and without a baseline, and those of tests/evil_ranks on
two ranks; honest kernels are not blamed."""

import builtins
import random
import time

import pytest
import torch

from bench import cli
from bench.core import variants
from bench.text import evaluation
from bench.trainer import spot
from bench.trainer.progress import Speed
from bench.trainer.spot import Lot
from reference.models import MODELS
from reference.models.llama2 import Llama2
from tests import commands
from tests.bench.trainer.rank_cases import command
from tests.bench.trainer.runs import SMALL, told
from tests.bench.trainer.together import apart
from tools import cheats

LLAMA = Llama2("llama2-tiny", L=2, NH=4, NKV=2, C=32, H=48, max_t=32, v=300)
MODEL = {"gelu": SMALL.name, "swiglu": LLAMA.name, "rmsnorm": LLAMA.name}  # where not both call a layer
RECOMPUTE = {SMALL.name: "gelu,layernorm", LLAMA.name: "swiglu,rmsnorm"}
EVIL = [v for v in variants.discover((cheats.EVIL_TRAINING,)) if v.path.is_relative_to(cheats.EVIL_TRAINING)]
SIZES = ("--batch", 2, "--seq", 8, "--total-batch", 32, "--threads", 1)
OPTIONS = (*SIZES, "--steps", 6, "--val-every", 1, "--val-batches", 3, "--lr", 0.01)


@pytest.fixture(autouse=True)
def small_llama(monkeypatch):
    monkeypatch.setitem(MODELS, LLAMA.name, LLAMA)


@pytest.fixture(autouse=True)
def _world():
    """What the cheats replace in this process."""
    kept = [(time, "perf_counter"), (torch, "isfinite"), (builtins, "round"), (Speed, "add")]
    kept += [(spot.Spot, "gradients"), (spot.Spot, "updated")]
    values = [getattr(owner, name) for owner, name in kept]
    yield
    for (owner, name), value in zip(kept, values, strict=True):
        setattr(owner, name, value)


def train(model: str, data, out, kernels: str, *options: object) -> commands.Done:
    recompute = ("--recompute", RECOMPUTE[model])
    words = (*OPTIONS, "--schedule", "constant", *recompute, "--kernels", kernels, "--out", out, *options)
    return commands.run("train", model, "--data", data, *words)


def questions(folder) -> tuple[object, ...]:
    """Options for questions with endings of one token to three."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(5)
    parts = [[tuple(draw.choices(range(1, 300), k=size)) for size in (3, 1, 2, 3, 1)] for _ in range(7)]
    evaluation.write(folder / "questions.bin", [evaluation.Example(p[0], tuple(p[1:]), 2) for p in parts])
    return "--hellaswag", folder / "questions.bin", "--hellaswag-every", 3


def runs() -> list:
    """Each cheat with the models that call its layer; the second one, and those in bf16, for the slow set."""
    found = []
    for v in EVIL:
        models = [MODEL[v.layer]] if v.layer in MODEL else [SMALL.name, LLAMA.name]
        for i, model in enumerate(models):
            for dtype in ("fp32", "bf16"):
                marks = pytest.mark.slow if i or dtype == "bf16" or cheats.read(v.path).slow else ()
                found.append(pytest.param(v, model, dtype, marks=marks, id=f"{v.layer}-{v.name}-{model}-{dtype}"))
    return found


@pytest.mark.parametrize(("variant", "model", "dtype"), runs())
def test_a_cheat_is_seen(variant, model, dtype, data, tmp_path):
    seen(variant, model, data, tmp_path, "--dtype", dtype)


def seen(variant, model, data, out, *options: object) -> None:
    kernels = f"torch.eager,{variant.layer}={variant.name},{cheats.EVIL_TRAINING}"
    asked = questions(out) if variant.stem == "prettier_answers" else ()
    done = train(model, data, out / "run", kernels, *asked, *options)
    wrong = [e["wrong"] for e in told(out / "run", "spot")]
    assert done.returncode == cli.WRONG and wrong, done.stderr + done.stdout
    assert wrong[0].partition(":")[0] in cheats.read(variant.path).caught_by, wrong[0]
    assert wrong[0] in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("variant", EVIL, ids=lambda v: f"{v.layer}-{v.name}")
def test_a_cheat_is_seen_beside_a_baseline(variant, data, tmp_path):
    model = MODEL.get(variant.layer, SMALL.name)
    seen(variant, model, data, tmp_path, "--baseline", "eager", "--parity-every", 3)


RANKS = [v for v in variants.discover((cheats.EVIL_RANKS,)) if v.path.is_relative_to(cheats.EVIL_RANKS)]


@pytest.mark.parametrize(
    ("variant", "optimizer"),
    [
        pytest.param(v, o, marks=pytest.mark.slow if cheats.read(v.path).slow or o == "sharded" else (), id=f"{v}-{o}")
        for v in RANKS
        for o in ("replicated", "sharded")
        if o == "replicated" or v.layer != "adamw"  # of a state that is spread over ranks no update is judged
    ],
)
def test_a_cheat_on_two_ranks_is_seen(variant, optimizer, data, tmp_path):
    kernels = f"torch.eager,{variant.layer}={variant.name},{cheats.EVIL_RANKS}"
    sizes = ("--batch", 2, "--seq", 8, "--total-batch", 64, "--threads", 1)  # two micro-batches of each rank
    words = (*sizes, "--steps", 3, "--val-every", 1, "--val-batches", 3, "--lr", 0.01, "--schedule", "constant")
    more = ("--optimizer", optimizer, "--kernels", kernels, "--out", tmp_path / "run")
    ended = apart(2, command, SMALL.name, "--data", data, *words, *more)
    wrong = [e["wrong"] for e in told(tmp_path / "run", "spot")]
    # Whoever drifts apart ends the run by itself, at its checkpoint.
    assert ended[0].returncode in (cli.WRONG, cli.FAILED) and wrong, ended[0].stderr + ended[0].stdout
    assert wrong[0].partition(":")[0] in cheats.read(variant.path).caught_by, wrong[0]


@pytest.mark.parametrize(
    ("model", "dtype", "more"),
    [
        (SMALL.name, "fp32", ()),
        (LLAMA.name, "bf16", ()),
        (SMALL.name, "bf16", ("--no-masters",)),
        pytest.param(LLAMA.name, "fp32", ("--skip-norm-z", "0.1"), marks=pytest.mark.slow),
        pytest.param(SMALL.name, "fp32", ("--baseline", "eager"), marks=pytest.mark.slow),
    ],
)
def test_honest_kernels_are_not_blamed_at_any_step(model, dtype, more, data, tmp_path, monkeypatch):
    """Each step and each evaluation is looked at; kernels in C++."""
    monkeypatch.setattr(spot.Lot, "drawn", lambda self, step_s: True)
    done = train(model, data, tmp_path / "run", "cpu.simd", "--dtype", dtype, *more, *questions(tmp_path))
    assert done.returncode == cli.OK, done.stderr + done.stdout
    assert not told(tmp_path / "run", "spot") and len(told(tmp_path / "run", "step")) == 6
    assert [e["step"] for e in told(tmp_path / "run", "hellaswag")] == [3, 6]


def test_looks_take_their_share_of_the_time(monkeypatch):
    """A look that costs ten steps comes every two thousand; and not before the first one says what it costs."""
    draw = random.Random(3)
    lot = Lot()
    lot._draw = draw.random
    assert not any(lot.drawn(1.0) for _ in range(1000))
    lot.cost_s = 10.0
    looks = sum(lot.drawn(1.0) for _ in range(400_000))
    assert looks * 10.0 / 400_000 == pytest.approx(spot.SHARE, rel=0.2)

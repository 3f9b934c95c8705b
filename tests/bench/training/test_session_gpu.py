"""The training step on a GPU, here the made-up one: a captured step, what cannot be captured, what does not fit."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import HOME, cli
from bench.core import variants
from bench.e2e import parser
from bench.machine.devices import BUSY, SPAN
from bench.models import CallId, choose
from bench.models.program import program, step_calls
from bench.models.step import Step
from bench.text import shards
from bench.training import pick, plan, rooms
from bench.training.field import OURS, Field
from bench.training.rooms import Built, Job, JudgeRoom, OurRoom, TorchRoom, _sliced
from reference.models.gpt2 import GPT2, init_parameters
from tests import on_machine
from tests.bench.training.test_session import command
from tests.fake_gpu import MEMORY_BYTES, FakeGpu, kernel

FAKE = "tests.fake_gpu:FakeGpu"
SMALL = GPT2("small", L=2, NH=2, C=32, max_t=24, v=300)
B, T = 2, 8
NORM, ADAMW = (CallId(layer, "", "forward") for layer in ("global_norm", "adamw"))


@pytest.fixture
def gpu():
    made = FakeGpu()
    yield made
    made.close()


def build(gpu: FakeGpu, dtype: str = "bf16", accumulation: int = 1, spoil: dict | None = None, **memory) -> Step:
    eager = {v.layer: v.load() for v in variants.discover() if v.name == "torch.eager"}
    calls = step_calls(SMALL, B, T, dtype, memory.get("recompute", ()))
    modules = {id: eager[id.layer] for id in calls} | (spoil or {})
    return Step(program(SMALL, B, T, dtype, gpu, **memory), modules, accumulation)


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, SMALL.v, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def train(step: Step, steps: int = 3, plain: bool = False) -> list[tuple[float, float]]:
    step.load(init_parameters(SMALL, 0))
    batches = [[batch(100 * i + j) for j in range(step.accumulation)] for i in range(steps)]
    return [step.run(b, 1e-3 / (i + 1), plain) for i, b in enumerate(batches)]


# --- the graph ---


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_captured_step_is_the_plain_one_bit_for_bit(gpu, dtype, accumulation):
    """Batches, learning rate, step number and micro-batches are all read anew at each replay."""
    plain, captured = build(gpu, dtype, accumulation), build(gpu, dtype, accumulation)
    assert captured.capture() is None and captured.replay
    assert train(plain) == train(captured)
    for name, p in plain.memory.params.items():
        assert torch.equal(p, captured.memory.params[name]), name


def test_a_replay_launches_once_and_plain_launches_every_kernel(gpu):
    step = build(gpu)
    assert step.capture() is None

    def host_seconds(plain: bool) -> float:
        gpu.synchronize()
        with gpu.timer(SPAN) as timer:
            timer.start()
            step.run([batch(0)], 1e-3, plain)
            timer.stop()
        return timer.seconds[0]

    assert host_seconds(plain=True) > 2 * host_seconds(plain=False)


def test_memory_is_constant_over_twenty_replays(gpu):
    step = build(gpu)
    assert step.capture() is None
    train(step, 2)
    addresses = [t.data_ptr() for t in step.memory.tensors]
    before = gpu.memory()[0]
    train(step, 20)
    assert gpu.memory()[0] == before
    assert addresses == [t.data_ptr() for t in step.memory.tensors]


class Synchronizes:
    """torch.eager's layernorm, which looks at a number in between."""

    __name__ = "torch.layernorm.looks"

    def __init__(self):
        self.inside = next(v for v in variants.discover() if (v.layer, v.name) == ("layernorm", "torch.eager")).load()

    def forward(self, *args, **outputs):
        self.inside.forward(*args, **outputs)
        outputs["mean"].sum().item()

    def backward(self, *args, **outputs):
        self.inside.backward(*args, **outputs)


def test_what_breaks_the_capture_is_named_and_the_step_goes_on_without(gpu):
    step = build(gpu, spoil={CallId("layernorm", "", "forward"): Synchronizes()})
    told = step.capture()
    assert told and told.startswith("layernorm forward (torch.layernorm.looks): RuntimeError: ")
    assert "capturing" in told and step.replay is None
    assert train(step) == train(build(gpu))


def test_a_capture_that_fails_at_its_end_is_searched_call_by_call(gpu, monkeypatch):
    """Work left on another stream is noticed only when the capture ends: then each call is captured alone."""
    step = build(gpu)
    guilty, ran = step.first[7], []
    monkeypatch.setattr("bench.models.step._run", lambda bounds: ran.extend(bounds))

    def capture(calls):
        ran.clear()
        calls()
        if any(bound is guilty for bound in ran):
            raise RuntimeError("unjoined work")
        return calls

    monkeypatch.setattr(gpu, "capture", capture)
    call = step.first_calls[7]
    assert (step.capture() or "").startswith(f"{call.id} (torch.{call.id.layer}.eager): ")

    def broken(calls):
        raise RuntimeError("no graphs today")

    monkeypatch.setattr(gpu, "capture", broken)
    assert step.capture() == "RuntimeError: no graphs today"  # and nobody is blamed


def test_times_in_context_are_the_devices(gpu):
    step = build(gpu, accumulation=2)
    assert step.capture() is None
    step.load(init_parameters(SMALL, 0))
    times = step.run_timed([batch(0), batch(1)], 1e-3, BUSY)
    assert set(times) == set(step_calls(SMALL, B, T, "bf16"))
    ran = len(gpu.ran)
    assert ran and all(0 < ms < 1 for ms in times.values())
    gpu.blind = True
    with pytest.raises(RuntimeError, match="no kernel"):
        step.run_timed([batch(0), batch(1)], 1e-3, BUSY)


# --- recomputing ---

TINY = GPT2("tiny", L=2, NH=2, C=32, max_t=24, v=300)


def cpu_job(dtype: str, recompute: tuple[str, ...] = ()) -> Job:
    return Job(TINY, 4, 16, dtype, recompute=recompute)


def cpu_room(job: Job) -> tuple[OurRoom, Built]:
    calls = step_calls(job.model, job.B, job.T, job.dtype, job.recompute)
    pool = choose.candidates(choose.parse("torch.eager"), variants.discover(), calls, "cpu", job.dtype)
    room = OurRoom(job)
    return room, room.build({key: found[0] for key, found in pool.items()})


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [("gelu",), ("layernorm",), ("gelu", "layernorm")])
def test_recomputing_saves_what_it_says_and_stays_in_the_band(dtype, recompute):
    from tests.bench.training.test_session import batches, gate, trajectory

    job = cpu_job(dtype)
    steps = batches(job.model, job)
    (less, built), (all_of_it, _) = cpu_room(cpu_job(dtype, recompute)), cpu_room(job)
    assert gate(job, steps).excesses(trajectory(less, steps)) == []
    kept = [sum(t.nbytes for t in r.memory.tensors) for r in (all_of_it, less)]
    assert kept[0] - kept[1] == built.saved_bytes > 0
    if recompute == ("gelu",):
        assert built.saved_bytes == (2 - 1) * 4 * 16 * 4 * 32 * (4 if dtype == "fp32" else 2)


def test_a_recomputation_that_is_left_out_is_outside_the_band():
    """The gate sees it: backward would read the last block's GELU for all."""
    from tests.bench.training.test_session import batches, gate, trajectory

    class Nothing:
        forward = staticmethod(lambda *args, **outputs: None)

    job = cpu_job("fp32", ("gelu",))
    room, _ = cpu_room(job)
    modules: dict = {**room.training.modules, CallId("gelu", "recompute", "forward"): Nothing}
    room.training = Step(room.program, modules)
    steps = batches(job.model, job)
    excesses = gate(job, steps).excesses(trajectory(room, steps))
    assert any("h0.fcproj.weight" in str(e) for e in excesses)


# --- turns, defaults, slices ---


def test_turns_of_a_gpu_are_several_steps_and_the_first_is_not_timed():
    found = plan.turns(12, gpu=True)
    assert [list(t.steps) for t in found] == [[0, 1], [2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16]]
    assert [list(t.timed) for t in found] == [[], [3, 4, 5, 6, 7], [9, 10, 11, 12, 13], [15, 16]]
    found = plan.turns(3, gpu=False)
    assert [list(t.timed) for t in found] == [[], [], [2], [3], [4]]


def planned(*arguments: str) -> plan.Plan:
    return plan.plan_of(**vars(parser().parse_args(arguments)), argv=[])


@pytest.mark.parametrize(
    ("line", "B", "T", "dtype", "baselines", "steps", "halve"),
    [
        ("gpt2-124m", 4, 64, "fp32", "eager,compile", 10, False),
        (f"gpt2-124m --device {FAKE}", 64, 1024, "bf16", "eager,compile,compile-plain", 30, True),
        (f"gpt2-774m --device {FAKE} --seq 512 --dtype fp32", 16, 512, "fp32", "eager,compile,compile-plain", 30, True),
        (f"gpt2-tiny --device {FAKE} --batch 3 --baseline none --steps 4", 3, 128, "bf16", "none", 4, False),
    ],
)
def test_defaults_are_the_devices(line, B, T, dtype, baselines, steps, halve):
    found = planned(*line.split())
    assert (found.job.B, found.job.T, found.job.dtype) == (B, T, dtype)
    assert (",".join(found.baselines) or "none", found.steps, found.halve) == (baselines, steps, halve)


def centre(job: Job, steps: list) -> list:
    judge = JudgeRoom(job)
    judge.begin(perturbed=[])
    return judge.go_on(steps, 1e-3)[0]


def test_the_judge_takes_slices_where_a_micro_batch_does_not_fit(gpu, monkeypatch):
    monkeypatch.setattr(rooms, "open_device", lambda name: gpu)
    job = Job(SMALL, 4, 24, "fp32", FAKE)
    tokens = torch.randint(0, SMALL.v, (2, 4, 25), generator=torch.Generator().manual_seed(0)).numpy()
    steps = [[(t[:, :-1].copy(), t[:, 1:].copy())] for t in tokens]
    assert [len(x) for x, _ in _sliced(steps[0], 2)] == [2, 2]
    whole = centre(job, steps)
    monkeypatch.setenv(MEMORY_BYTES, str(2 * 24 * SMALL.vp * 4))  # the logits of two sequences
    sliced = centre(job, steps)
    for a, b in zip(whole, sliced, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6) and b["norm"] == pytest.approx(a["norm"], rel=1e-5)
    monkeypatch.setenv(MEMORY_BYTES, "1000")
    with pytest.raises(torch.OutOfMemoryError):
        centre(job, steps)


def test_the_fastest_sdpa_backend_is_pinned(gpu, monkeypatch):
    monkeypatch.setattr(rooms, "open_device", lambda name: gpu)
    room = TorchRoom(Job(SMALL, 2, 8, "bf16", FAKE), "eager")
    room._pin_sdpa()
    assert room.backend is not None and "SDPA pinned" in room.recipe[-1]
    room.load()
    tokens, targets = batch(0)
    room.step([(tokens.numpy(), targets.numpy())], 1e-3)


# --- the race ---


def test_a_candidate_that_breaks_the_gpu_ends_the_race_and_is_named(gpu, tmp_path):
    folder = tmp_path / "torch" / "global_norm"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text(
        '"""Writes where it must not."""\n\nfrom tests import fake_gpu\n\n\n'
        "def forward(grads, *, norm):\n    fake_gpu.fault()\n"
    )
    found = [v for v in variants.discover((tmp_path,)) if v.name in ("torch.eager", "torch.bad")]
    pool = {
        CallId(layer, "", "forward"): [v for v in found if v.layer == layer]
        for layer in ("layernorm", "global_norm", "adamw")
    }
    times = choose.race(program(SMALL, B, T, "bf16", gpu), pool)
    assert times.broke == (NORM, "torch.bad")
    assert "illegal memory access" in times.skipped[NORM]["torch.bad"]
    assert NORM not in times.ms


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("    fake_gpu.fault()", "left the GPU unusable: AcceleratorError: CUDA error: an illegal memory access"),
        ("    os.kill(os.getpid(), 9)", "its process died with signal SIGKILL"),
        ("    time.sleep(60)", "no answer within 5 s"),
    ],
)
def test_a_candidate_that_costs_the_process_is_out_and_the_race_goes_on(tmp_path, monkeypatch, body, why):
    folder = tmp_path / "torch" / "global_norm"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text(
        '"""Does what it must not."""\n\nimport os\nimport time\n\nfrom tests import fake_gpu\n\n\n'
        f"def forward(grads, *, norm):\n{body}\n"
    )
    monkeypatch.setattr(pick, "RACE_LIMIT_S", 5.0)
    found = [v for v in variants.discover((tmp_path,)) if v.name in ("torch.eager", "torch.bad")]
    pool = {id: [v for v in found if v.layer == id.layer] for id in (NORM, ADAMW)}
    notes: list[str] = []
    racing = replace(planned("gpt2-tiny", "--device", FAKE), job=Job(SMALL, B, T, "bf16", FAKE))
    with Field(racing, notes) as field:
        field.start(OURS)
        heard: list[choose.Told] = []
        times = pick.measure(field, pool, heard.append)
    assert any(isinstance(told, choose.Times) and ADAMW in told.ms for told in heard), "each call's times at once"
    assert list(times.ms[NORM]) == ["torch.eager"] and times.ms[ADAMW]
    assert why in times.skipped[NORM]["torch.bad"]
    assert "torch.bad of global_norm forward is out" in notes[0] and len(notes) == 1


# --- the whole command ---


def quick(tmp_path: Path) -> tuple:
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, 1000, 20000).astype(np.uint16)
    shards.write_tokens(tmp_path / "train.bin", tokens)
    where = ("--data", tmp_path / "train.bin", "--out", tmp_path / "run", "--json")
    return ("gpt2-tiny", "--device", FAKE, "--seq", 16, "--steps", 6, "--baseline", "eager", "--threads", 1, *where)


def test_a_gpus_step_through_the_command_line(tmp_path, few_tokens):
    more = ("--recompute", "gelu", "--profile", tmp_path / "profile")
    done = command(*quick(tmp_path), "--batch", 2, "--kernels", "torch.eager", *more)
    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = document["contestants"]
    assert ours["graph"] is True and ours["graph_evidence"] == "" and "graph" not in theirs
    assert ours["timer"] == theirs["timer"] == "span" and ours["dtype"] == "bf16"
    assert len(ours["losses"]) == 2 + 6 + 2  # warm-up, timed, and one untimed in each of two turns
    assert ours["recompute"] == ["gelu"] and ours["saved_bytes"] == 2 * 16 * 4 * 64 * 2
    parts = document["reconciliation"]
    assert parts["layers_s"] > 0 < parts["gaps_s"] and parts["remainder_s"] < 0  # what the graph saves
    assert parts["layers_s"] + parts["gaps_s"] + parts["remainder_s"] == pytest.approx(parts["step_s"])
    assert "ours: two CUDA graphs" in done.stdout and "gelu recomputed in backward" in done.stdout
    assert "bf16 autocast" in done.stdout
    rows = (tmp_path / "profile" / "ranges.csv").read_text()
    assert "matmul/qkv/forward/torch.eager" in rows and "gelu/recompute/forward/torch.eager" in rows
    assert {p.name for p in (tmp_path / "profile").glob("*.gz")} == {
        "step.ours.trace.json.gz",
        "step.torch.eager.trace.json.gz",
    }


@pytest.mark.slow
def test_a_step_that_cannot_be_captured_says_so_and_trains(tmp_path):
    folder = tmp_path / "kernels" / "torch" / "global_norm"
    folder.mkdir(parents=True)
    (folder / "looks.py").write_text(
        '"""Reads the norm back."""\n\nimport torch\n\n\ndef forward(grads, *, norm):\n'
        "    norm.fill_(torch.stack([g.float().norm() for g in grads]).norm().item())\n"
    )
    kernels = f"torch.eager,global_norm=torch.looks,{tmp_path / 'kernels'}"
    done = command(*quick(tmp_path), "--batch", 2, "--kernels", kernels)
    assert done.returncode == 0, done.stderr + done.stdout
    ours = json.loads(done.stdout.splitlines()[-1])["contestants"][0]
    assert ours["graph"] is False and ours["graph_evidence"].startswith("global_norm forward (")
    assert "ours is no graph" in done.stdout


def in_a_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        on_machine.command("e2e", *arguments),
        cwd=HOME,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
def test_a_batch_is_halved_until_it_fits_but_not_one_that_was_asked_for(tmp_path):
    limit = {MEMORY_BYTES: str(30 << 20)}  # the fp32 logits of B=64, 64 * 16 * 50304 * 4 bytes, are 206 MB
    done = in_a_process(*quick(tmp_path), "--kernels", "torch.eager", **limit)
    assert done.returncode == 0, done.stderr + done.stdout
    (ours, _) = json.loads(done.stdout.splitlines()[-1])["contestants"]
    assert ours["shape"]["B"] == 8 and "B=16 does not fit" in done.stdout
    other = ("--out", tmp_path / "other", "--batch", 16)
    done = in_a_process(*quick(tmp_path), *other, "--kernels", "torch.eager", **limit)
    assert done.returncode == cli.FAILED and "does not fit on this GPU with --batch 16" in done.stderr
    assert "--batch 8" in done.stderr and "Traceback" not in done.stderr


def test_candidates_are_raced_by_what_the_gpu_needs_not_by_the_hosts_launches(gpu):
    def variant(name: str, launches: int, seconds: float) -> SimpleNamespace:
        def forward() -> None:
            for _ in range(launches):
                with kernel(name, seconds / launches):
                    pass

        module = SimpleNamespace(forward=forward)
        return SimpleNamespace(name=name, load=lambda: module)

    call = SimpleNamespace(id=CallId("gelu", "", "forward"), inputs=[], outputs={}, accumulate=False)
    racing = [variant("many_launches", 400, 400e-6), variant("one", 1, 800e-6)]  # 2 ms of the host, in a graph none
    skipped: dict = {}
    found = choose._race_one(racing, [call], {}, gpu, skipped, lambda _: None)
    assert not skipped
    assert found == {"many_launches": pytest.approx(0.4), "one": pytest.approx(0.8)}

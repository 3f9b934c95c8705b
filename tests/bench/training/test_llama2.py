"""Llama 2 in the race of training steps: right kernels are inside the band of PyTorch's runs, wrong ones are not."""

import json
from dataclasses import replace

import pytest
import torch

from bench import cli, e2e
from bench.cli import CannotGoOn
from bench.core.variants import discover
from bench.models import choose
from bench.models.program import program, step_calls
from bench.models.step import Step
from bench.text import corpus
from bench.training import plan, rooms, session
from bench.training.rooms import Job, OurRoom, TorchRoom
from reference.models.llama2 import Llama2, init_parameters
from tests import truth_variants
from tests.bench.training.test_session import batches, command, gate, shards, trajectory
from tests.fake_gpu import FakeGpu

SMALL = Llama2("small", L=2, NH=4, NKV=2, C=32, H=44, max_t=24, v=300)


def our_room(job: Job, spec: str = "torch.eager") -> OurRoom:
    parsed = choose.parse(spec)
    calls = step_calls(job.model, job.B, job.T, job.dtype, job.recompute)
    pool = choose.candidates(parsed, discover(parsed.folders), calls, "cpu", job.dtype)
    room = OurRoom(job)
    room.build({key: found[0] for key, found in pool.items()})
    return room


@pytest.mark.parametrize(("dtype", "recompute"), [("fp32", ()), ("bf16", ("swiglu", "rmsnorm"))])
def test_ours_is_inside_the_band(dtype, recompute):
    job = Job(SMALL, 4, 16, dtype, recompute=recompute)
    steps = batches(SMALL, job)
    assert gate(job, steps).excesses(trajectory(our_room(job), steps)) == []


WRONG = {
    "rope": ("backward", "forward(start, cos, sin, R, style, qkv=dqkv)"),  # turned on, not back
    "swiglu": ("backward", "dx[:, dx.shape[1] // 2 :].zero_()"),
    "residual_rmsnorm": ("backward", "dresidual_out is not None and dresidual.sub_(dresidual_out)"),
    "embedding": ("backward", "dwte.zero_()"),  # of a tied head, its part too
    "rmsnorm": ("forward", "out.mul_(1.02)"),
}


@pytest.mark.parametrize("layer", WRONG)
def test_a_wrong_kernel_is_outside(tmp_path, layer):
    truth_variants.write(tmp_path, "wrong", (layer,))
    file, (phase, spoil) = tmp_path / "torch" / layer / "wrong.py", WRONG[layer]
    before, function = file.read_text().split(f"def {phase}")
    call, *rest = function.split("\n\n\n")
    file.write_text("\n\n\n".join([f"{before}def {phase}{call.rstrip()}\n    {spoil}\n", *rest]))
    job = Job(SMALL, 4, 16, "fp32")
    steps = batches(SMALL, job, 2)
    run = trajectory(our_room(job, f"torch.eager,{layer}=torch.wrong,{tmp_path}"), steps)
    assert gate(job, steps).excesses(run)


def test_the_whole_command(tmp_path):
    """Parity, MFU by both conventions, and a step whose parts add up."""
    what = ("--batch", 1, "--seq", 16, "--steps", 2, "--threads", 1, "--kernels", "torch.eager", "--baseline", "none")
    data = ("--data", shards(tmp_path, 512), "--out", tmp_path / "run")
    done = command("llama2-tiny", *what, *data, "--recompute", "rmsnorm", "--json")
    assert done.returncode == cli.OK, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    (ours,) = document["contestants"]
    assert document["parity"] is True and ours["mfu_palm_of_ceiling"] > 0 < ours["mfu_llmc_of_ceiling"]
    assert {"rope backward", "swiglu forward", "rmsnorm/recompute forward"} <= ours["kernels"].keys()
    parts = document["reconciliation"]
    assert parts["layers_s"] + parts["gaps_s"] + parts["remainder_s"] == pytest.approx(parts["step_s"])


def test_an_sdpa_backend_is_pinned_for_grouped_queries(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setattr(rooms, "open_device", lambda name: gpu)
    job = Job(SMALL, 2, 8, "bf16", "tests.fake_gpu:FakeGpu")
    room = TorchRoom(job, "eager")
    room._pin_sdpa()
    assert room.backend is not None and "SDPA pinned" in room.recipe[-1]
    room.load()
    room.step(batches(SMALL, job, 1)[0], 1e-3)
    gpu.close()


def test_a_captured_step_is_the_plain_one_bit_for_bit():
    accumulation, told = 2, []
    eager = {v.layer: v.load() for v in discover() if v.name == "torch.eager"}
    for captured in (False, True):
        gpu = FakeGpu()
        modules = {id: eager[id.layer] for id in step_calls(SMALL, 4, 16, "bf16")}
        step = Step(program(SMALL, 4, 16, "bf16", gpu), modules, accumulation)
        if captured:
            assert step.capture() is None
        step.load(init_parameters(SMALL, 0))
        run = batches(SMALL, Job(SMALL, 4, 16, "bf16"), 2 * accumulation)
        pairs = [(torch.from_numpy(x), torch.from_numpy(y)) for ((x, y),) in run]
        told.append([step.run(pairs[i : i + accumulation], 1e-3) for i in range(0, len(pairs), accumulation)])
        gpu.close()
    assert told[0] == told[1]


def test_text_becomes_its_tokens_and_those_of_another_vocabulary_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "cache_dir", lambda: tmp_path / "cache")
    text = tmp_path / "text.txt"
    text.write_text("äb" * 500)
    made = plan.plan_of(**vars(e2e.parser().parse_args(["llama2-tiny", "--data", str(text)])), argv=[])
    ((x, _),) = session.batches_of(made).step(0)
    assert set(x.flatten().tolist()) == {byte + 3 for byte in "äb".encode()}
    with pytest.raises(CannotGoOn, match="the vocabulary has 512"):
        session.batches_of(replace(made, data=str(shards(tmp_path, 1000))))

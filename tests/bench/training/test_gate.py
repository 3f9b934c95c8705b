"""AdamW's updates are judged by its formula, step by step, in bf16 too; without a finite norm nothing may move."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.core.variants import discover
from bench.models import choose
from bench.models.program import step_calls
from bench.training.gate import NotFinite, Updates, must_be_finite
from bench.training.rooms import Job, OurRoom
from reference.models.gpt2 import GPT2
from tests import truth_variants

SMALL = GPT2("small", L=1, NH=2, C=32, max_t=24, v=300)
STEPS, LR = 5, 3e-4


@pytest.fixture(params=["fp32", "bf16"])
def job(request) -> Job:
    return Job(SMALL, 2, 8, request.param)


def our_room(job: Job, spec: str) -> OurRoom:
    parsed = choose.parse(spec)
    calls = step_calls(job.model, job.B, job.T, job.dtype)
    pool = choose.candidates(parsed, discover(parsed.folders), calls, "cpu", job.dtype)
    room = OurRoom(job)
    room.build({key: found[0] for key, found in pool.items()})
    return room


def judged(job: Job, spec: str, lr: float = LR) -> Updates:
    """A few steps of a made-up text."""
    room, found = our_room(job, spec), Updates(job.model, job.dtype)
    room.load()
    tokens = np.random.default_rng(0).integers(0, SMALL.v, (STEPS, job.B, job.T + 1))
    for t in tokens:
        done = room.step([(t[:, :-1].copy(), t[:, 1:].copy())], lr)
        assert done["update"]
        found.judge(done["update"], done["norm"])
    return found


def spoiled(folder: Path, before: str, after: str = "") -> str:
    """--kernels with the reference's AdamW where `before` has its arguments changed, and `after` what it has done."""
    truth_variants.write(folder, "wrong", ("adamw",))
    file = folder / "torch" / "adamw" / "wrong.py"
    text = file.read_text()
    call = text.index("    truth_variants.call")
    file.write_text(f"{text[:call]}    {before}\n{text[call:].rstrip()}\n    {after}\n")
    return f"torch.eager,adamw=torch.wrong,{folder}"


@pytest.mark.parametrize("adamw", ["torch.eager", "torch.fused", "cpu.simd", "cpu.naive"])
@pytest.mark.parametrize("lr", [1e-5, 1e-2])
def test_an_honest_adamw_passes(job, adamw, lr):
    found = judged(job, f"torch.eager,adamw={adamw}", lr)
    assert found.excesses == [] and found.updates == STEPS


WRONG = {
    "no weight decay": ("weight_decays = [0.0] * len(grads)", "", 1),
    "decay of biases too": ("weight_decays = [0.1] * len(grads)", "", 1),
    "one update in four": ("if int(step) % 4 != 1:\n        return", "", 2),
    "no bias correction": ("step = step + 1000", "", 1),
    "another beta": ("beta2 = 0.999", "", 1),
    "clipping left out": ("grad_scale = grad_scale * 0 + 1", "", 1),
    "state in bf16": ("", "for each in m + v:\n        each.copy_(each.bfloat16())", 1),
    "decay that is coupled, as in Adam with L2": (
        "grads = [g + 0.1 * p / grad_scale for g, p in zip(grads, params)]; weight_decays = [0.0] * len(grads)",
        "",
        1,
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_adamw_is_refused(job, tmp_path, what):
    before, after, step = WRONG[what]
    excesses = judged(job, spoiled(tmp_path, before or "pass", after)).excesses
    assert excesses and min(e.step for e in excesses) == step, [str(e) for e in excesses[:3]]
    assert "after the update is" in str(excesses[0]) and "by AdamW's formula" in str(excesses[0])


BELOW_FP32 = {
    "masters in bf16": "for each in masters:\n        each.copy_(each.bfloat16())",
    "parameters that are not their masters": "for each in params:\n        each.mul_(1.02)",
    "parameters left as they were": "params[0].zero_()",
}


@pytest.mark.parametrize("what", BELOW_FP32)
def test_a_wrong_master_is_refused(tmp_path, what):
    excesses = judged(Job(SMALL, 2, 8, "bf16"), spoiled(tmp_path, "pass", BELOW_FP32[what])).excesses
    assert excesses and excesses[0].step == 1


def test_nothing_moves_where_the_norm_is_not_finite(job, tmp_path):
    """A norm of infinity at the third step: it is skipped, which is right; a room that updates nevertheless is not."""
    truth_variants.write(tmp_path, "wild", ("global_norm",))
    file = tmp_path / "torch" / "global_norm" / "wild.py"
    file.write_text(
        file.read_text().rstrip()
        + "\n    calls.append(0)\n    len(calls) % 5 == 3 and norm.fill_(float('inf'))\n\n\ncalls = []\n"
    )
    kernels = f"torch.eager,global_norm=torch.wild,{tmp_path}"
    found = judged(job, kernels)
    assert found.excesses == [] and (found.steps, found.updates) == (STEPS, STEPS - 1)


def test_an_update_in_spite_of_the_norm_is_refused(job):
    room, found = our_room(job, "torch.eager"), Updates(job.model, job.dtype)
    room.load()
    tokens = np.zeros((2, 8), dtype=np.int64)
    done = room.step([(tokens, tokens)], LR)
    assert done["update"]
    found.judge(done["update"], float("nan"))
    assert any("gradient norm nan, so no update" in str(e) for e in found.excesses)
    assert all(e.times == float("inf") for e in found.excesses)


def test_an_update_that_is_not_finite_is_refused(job):
    room, found = our_room(job, "torch.eager"), Updates(job.model, job.dtype)
    room.load()
    tokens = np.zeros((2, 8), dtype=np.int64)
    done = room.step([(tokens, tokens)], LR)
    assert done["update"]
    spoilt = dataclasses.replace(done["update"].after, m=[math.nan] * len(done["update"].after.m))
    found.judge(dataclasses.replace(done["update"], after=spoilt), done["norm"])
    assert len(found.excesses) == len(SMALL.parameter_shapes())


def test_the_sample_has_the_ends_of_every_parameter_and_is_drawn_anew():
    job = Job(SMALL, 2, 8, "bf16")
    one, other = OurRoom(job).sample, OurRoom(job).sample
    mem = one.memory
    for views, index in ((mem.params, one.of_work), (mem.m, one.of_fp32)):
        for view in views.values():
            first = view.storage_offset()
            assert {first, first + view.numel() - 1} <= set(index.tolist())
    assert not torch.equal(one.of_fp32, other.of_fp32)
    flat = torch.arange(len(mem.flat_m))
    of = dict(zip(one.of_fp32.tolist(), one.of_work.tolist(), strict=True))
    assert len(of) == sum(one.counts) and set(of) <= set(flat.tolist())


def test_a_run_that_is_not_finite_names_its_step():
    run = [dict(loss=3.0, norm=1.0), dict(loss=float("nan"), norm=2.0)]
    must_be_finite("torch.eager", run[:1], 1e-3)
    with pytest.raises(NotFinite, match=r"torch.eager is not finite from step 2 on at --lr 100 .*: .* lower --lr"):
        must_be_finite("torch.eager", run, 100.0)

"""A step of ours judged by itself, and what is left alone: cheats of tests/evil_steps are seen by `bench.e2e`."""

import pytest

from bench import cli
from bench.core import variants
from bench.training.rooms import Job, JudgeRoom
from tests import commands
from tests.bench.training.test_session import LR, SMALL, batches, gate, our_room, rows_of, shards
from tools import cheats

EVIL = [v for v in variants.discover((cheats.EVIL_STEPS,)) if v.path.is_relative_to(cheats.EVIL_STEPS)]
IN_BF16 = ("torch.other_sign", "torch.positions_reversed")  # which the band of the gate hides
QUICK = ("gpt2-tiny", "--batch", 1, "--seq", 16, "--steps", 8, "--threads", 1, "--baseline", "eager")


def cheating(layer: str, name: str) -> str:
    return f"torch.eager,{layer}={name},{cheats.EVIL_STEPS}"


@pytest.mark.slow
@pytest.mark.parametrize("variant", EVIL, ids=lambda v: f"{v.layer}-{v.name}")
def test_a_cheat_is_seen(variant, tmp_path, few_tokens, monkeypatch):
    monkeypatch.setenv("RECORDS_OF", str(tmp_path))
    dtype = "bf16" if variant.name in IN_BF16 else "fp32"
    words = ("--kernels", cheating(variant.layer, variant.name), "--data", shards(tmp_path), "--dtype", dtype)
    done = commands.run("e2e", *QUICK, *words, "--out", tmp_path / "run")
    assert done.returncode in (cli.WRONG, cli.FAILED), done.stderr + done.stdout
    (ours,) = [row for row in rows_of(tmp_path / "run") if row["variant"] == "ours"]
    seen = "global_state" if "global_state" in ours["evidence"] else "inaccurate"
    seen = "error" if ours["status"] == "error" and seen != "global_state" else seen
    assert ours["status"] != "ok" and seen in cheats.read(variant.path).caught_by, ours


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gradient_that_points_elsewhere_is_seen_by_itself(dtype):
    """The norm is right, so that in bf16 the gate sees nothing; an honest step is not blamed, in slices neither."""
    job = Job(SMALL, 4, 16, dtype)
    steps, judge = batches(SMALL, job, 2), JudgeRoom(job)
    wrong = {}
    for name, kernels in (("honest", "torch.eager"), ("evil", cheating("layernorm", "torch.other_sign"))):
        room = our_room(job, kernels)
        room.load()
        done = room.steps(steps, LR, spot=1)
        told = done[1]["loss"], done[1]["norm"], 2
        wrong[name] = judge.again(room.handed(), steps[1], *told)
        judge.on_gpu = True  # one sequence after the other
        sliced = judge.again(room.handed(), steps[1], *told)
        judge.on_gpu = False
        assert [e.what for e in sliced] == [e.what for e in wrong[name]]
        room.forget()
    assert wrong["honest"] == []
    assert any("ln1.weight" in e.what for e in wrong["evil"]) and {e.step for e in wrong["evil"]} == {2}
    if dtype == "bf16":
        assert gate(job, steps).excesses(done) == []


def test_who_takes_more_threads_ends_the_run():
    job = Job(SMALL, 2, 8, "fp32", threads=1)
    room = our_room(job, cheating("global_norm", "torch.takes_more_threads"))
    room.load()
    with pytest.raises(cli.CannotGoOn, match="global_state: number of threads went from 1 to 3"):
        room.step(batches(SMALL, job, 1)[0], LR)

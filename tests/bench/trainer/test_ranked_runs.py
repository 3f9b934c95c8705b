"""`bench.train` on several ranks: one run, one voice, and any number of ranks may go on with it."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bench import HOME, cli
from tests.bench.trainer.rank_cases import command
from tests.bench.trainer.runs import COMMAND, KERNELS, SMALL, losses, told
from tests.bench.trainer.together import apart

# What the tests of one process train too: accumulation, a schedule, validation.
JOB = (SMALL.name, *KERNELS, "--total-batch", 64, "--steps", 9, "--lr", 0.01, "--warmup", 2, "--checkpoint-every", 3)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process's run, which the others are held to."""
    out = tmp_path_factory.mktemp("alone") / "run"
    (done,) = apart(1, command, *JOB, "--data", data, "--val-every", 4, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    return out


def near(run, other):
    """Every step's loss and norm, within the rounding of sums that are grouped otherwise."""
    a, b = losses(run), losses(other)
    assert a.keys() == b.keys() and len(a) == 9
    for step, found in a.items():
        assert found == pytest.approx(b[step], rel=1e-5), step


@pytest.mark.parametrize("optimizer", [pytest.param("replicated", marks=pytest.mark.slow), "sharded"])
def test_two_ranks_make_the_run_of_one(data, tmp_path, alone, optimizer):
    """And rank 0 alone writes and speaks; its judge blames nobody."""
    judged = [word for word in JOB if word != "--no-spot-checks"]
    words = (*judged, "--data", data, "--val-every", 4, "--optimizer", optimizer, "--out", tmp_path / "run")
    main, other = apart(2, command, *words)
    assert main.returncode == other.returncode == cli.OK, main.stderr + other.stderr
    assert "step 9/9" in main.stdout + main.stderr and other.stdout + other.stderr == ""
    assert not told(tmp_path / "run", "spot")
    near(tmp_path / "run", alone)
    (begun,) = told(tmp_path / "run", "start")
    assert begun["ranks"] == 2 and begun["tokens_per_step"] == 64
    mine, theirs = ([e["loss"] for e in told(run, "val")] for run in (tmp_path / "run", alone))
    assert len(mine) >= 3 and mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_any_number_of_ranks_goes_on(data, tmp_path, alone):
    """Two ranks, of which one is asked to stop; then one process, also asked; then two with the state spread."""
    out, words = tmp_path / "run", (*JOB, "--data", data)
    stopped = functools.partial(command, asked=(1, 1))
    for done in apart(2, stopped, *words, "--out", out):
        assert done.returncode == cli.INTERRUPTED, done.stderr
    assert (out / "checkpoints" / "step-00000002").exists()
    (done,) = apart(1, functools.partial(command, asked=(0, 4)), "--out", out, "--resume")
    assert done.returncode == cli.INTERRUPTED, done.stderr
    for done in apart(2, command, "--out", out, "--resume", "--optimizer", "sharded"):
        assert done.returncode == cli.OK, done.stderr
    assert [(e["step"], e["ranks"]) for e in told(out, "resume")] == [(2, 1), (5, 2)]
    near(out, alone)


@pytest.mark.slow
def test_it_goes_on_bit_for_bit_on_as_many_ranks(data, tmp_path):
    """With the state spread: a checkpoint has all of it."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = (*JOB, "--data", data, "--optimizer", "sharded", "--dtype", "bf16")
    assert [d.returncode for d in apart(2, command, *words, "--out", whole)] == [cli.OK] * 2
    shutil.copytree(whole, parts)
    for step in (6, 9):
        shutil.rmtree(parts / "checkpoints" / f"step-{step:08d}")
    assert [d.returncode for d in apart(2, command, "--out", parts, "--resume")] == [cli.OK] * 2
    assert losses(parts) == losses(whole)
    for file in ("weights.safetensors", "optimizer.safetensors"):
        a, b = (run / "checkpoints" / "step-00000009" / file for run in (whole, parts))
        assert a.read_bytes() == b.read_bytes(), file


def test_what_one_rank_finds_wrong_is_told_once(data, alone):
    """Rank 0 alone looks at the folder, which holds a run."""
    found = apart(2, command, *JOB, "--data", data, "--out", alone)
    assert "already holds a run" in found[0].stderr and found[0].returncode != cli.OK
    assert found[1].stderr == "" and found[1].returncode == cli.FAILED


def test_what_all_ranks_find_wrong_is_told_once(data, tmp_path):
    found = apart(2, command, *JOB, "--data", data, "--total-batch", 65, "--out", tmp_path / "run")
    assert [done.returncode for done in found] == [cli.USAGE] * 2
    assert sum("no whole number of micro-batches of 2 × 8 × 2 ranks" in done.stderr for done in found) == 1
    assert sum(bool(done.stderr) for done in found) == 1


def torchrun(ranks, *words, restarts=0):
    """`bench.train` of the small model as torchrun starts it."""
    engine = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "--max-restarts", restarts)
    argv = [sys.executable, *engine, "--no-python", sys.executable, "-c", COMMAND, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, argv)], stdout=pipe, stderr=pipe, text=True, cwd=HOME)


def kill_rank(run, rank, out, step):
    """SIGKILL to a rank of torchrun's, as soon as there is the checkpoint of a step."""
    until = time.monotonic() + 120
    while not (out / "checkpoints" / f"step-{step:08d}" / "whole.json").exists():
        assert time.monotonic() < until and run.poll() is None, run.communicate()
        time.sleep(0.01)
    listed = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True).stdout.split()
    for pid in listed:
        with open(f"/proc/{pid}/environ") as file:
            if f"\0RANK={rank}\0" in f"\0{file.read()}":
                os.kill(int(pid), signal.SIGKILL)


LONG = (SMALL.name, *KERNELS, "--steps", 300, "--checkpoint-every", 20, "--keep-last", 99)


@pytest.mark.slow
def test_torchrun_restarts_and_the_run_goes_on(data, tmp_path):
    """Rank 0 is killed: the other says so, torchrun starts both again, and the run ends as one that nothing befell."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    run = torchrun(2, *LONG, "--data", data, "--out", out, restarts=1)
    try:
        kill_rank(run, 0, out, 20)
        _, err = run.communicate(timeout=180)
    finally:
        run.kill()
    assert run.returncode == 0, err
    assert err.count("error: ") == 1 and "error: a rank was lost while rank 1 of 2 was" in err
    (resumed,) = told(out, "resume")
    assert 20 <= resumed["step"] < 300
    assert [d.returncode for d in apart(2, command, *LONG, "--data", data, "--out", whole)] == [cli.OK] * 2
    assert losses(out) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "killed"), [(4, 2), (2, 1)])
def test_a_killed_rank_ends_the_job(data, tmp_path, ranks, killed):
    """One message, torchrun's exit code, and the run can go on."""
    out = tmp_path / "run"
    run = torchrun(ranks, *LONG, "--data", data, "--out", out)
    try:
        kill_rank(run, killed, out, 20)
        _, err = run.communicate(timeout=180)
    finally:
        run.kill()
    assert run.returncode == 1
    assert err.count("error: ") == 1 and f"of {ranks} was" in err and "go on with --resume" in err
    done = apart(ranks, command, "--out", out, "--resume")
    assert [d.returncode for d in done] == [cli.OK] * ranks, done[0].stderr
    assert max(losses(out)) == 300


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ours_stays_in_the_band_beside_fsdp2(data, tmp_path, dtype):
    """Each rank has its part of the baseline beside it; rank 0 judges both over the batches of all."""
    out = tmp_path / "run"
    words = (*JOB, "--data", data, "--dtype", dtype, "--baseline", "fsdp2", "--parity-every", 5, "--out", out)
    said, wrong = (run := torchrun(2, *words)).communicate(timeout=280)
    assert run.returncode == cli.OK, wrong
    assert (said + wrong).count("FSDP2 on 2 ranks") == 1
    theirs = {e["step"]: e["loss"] for e in told(out, "baseline")}
    for step, (loss, _) in losses(out).items():
        assert loss == pytest.approx(theirs[step], rel=1e-4 if dtype == "fp32" else 1e-2)
    assert [(e["step"], e["parity"]) for e in told(out, "parity")] == [(5, True), (9, True)]

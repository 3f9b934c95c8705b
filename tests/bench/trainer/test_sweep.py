"""Sweeps: which cases there are, one job each with a folder of its own, what was cut off goes on, and Slurm's side."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import HOME, cli
from bench.cli import CannotGoOn
from bench.trainer import sweep
from bench.trainer.sweep import Case, Wishes, cases, job
from tests import commands
from tests.bench.trainer import runs

# ---- cases -----------------------------------------------------------------------------------------------------------


def test_cases_are_all_combinations():
    made = cases("train", ["gpt2-tiny"], ["lr=1e-4,3e-4", "--seed=0,1"], ["--steps", "5"])
    assert [case.name for case in made] == [f"lr={lr},seed={seed}" for lr in ("1e-4", "3e-4") for seed in (0, 1)]
    assert made[3].words == ("gpt2-tiny", "--lr=3e-4", "--seed=1", "--steps", "5")
    two = cases("layer", ["gelu", "residual", "gelu"], ["dtype=fp32,bf16"], ["--check-only"])
    assert [case.name for case in two] == [f"{n},dtype={d}" for n in ("gelu", "residual") for d in ("fp32", "bf16")]
    assert two[1].words == ("gelu", "-a", "dtype=bf16", "--check-only")
    assert [case.name for case in cases("layer", ["gelu"], [], [])] == ["gelu"]


def test_values_with_commas_and_names_that_no_file_can_have():
    (first, second) = cases("train", ["gpt2-tiny"], ["kernels=cpu;fastest,attention=cpu.naive"], [])
    assert second.words[1] == "--kernels=fastest,attention=cpu.naive"
    odd = cases("train", ["gpt2-tiny"], ["data=a/b,a b", f"out={'x' * 300},{'x' * 299}y"], [])
    names = [case.name for case in odd]
    assert len(set(names)) == 4 and all("/" not in name and len(name) < 200 for name in names)
    assert first.name != second.name


@pytest.mark.parametrize("axis", ["lr", "lr=", "=1", "lr=1,", "--=1"])
def test_an_axis_that_is_none_is_told(axis):
    with pytest.raises(CannotGoOn, match="NAME=VALUE,VALUE is wanted") as caught:
        cases("train", ["gpt2-tiny"], [axis], [])
    assert caught.value.code == cli.USAGE
    with pytest.raises(CannotGoOn, match="given twice"):
        cases("train", ["gpt2-tiny"], ["lr=1", "lr=2"], [])


def test_a_case_s_command_line(tmp_path):
    train, layer = Case("train", "x", ("gpt2-tiny",)), Case("layer", "x", ("gelu",))
    folder = tmp_path / "x"
    assert train.command(folder, False)[1:] == ["-m", "bench.train", "gpt2-tiny", "--out", str(folder)]
    assert train.command(folder, True)[-1] == "--resume", "which starts where there is nothing"
    assert layer.command(folder, True)[1:] == ["-m", "bench.layer", "gelu", "--out", str(folder)]
    folder.mkdir()
    (folder / "records.jsonl").touch()
    assert layer.command(folder, True)[-2:] == ["--resume", str(folder)]


# ---- here ------------------------------------------------------------------------------------------------------------

# What a case does is in its name: how long, how it ends, and that it ends itself when it is asked to.
PLAY = """
import pathlib, signal, sys, time
seconds, code, file = float(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
def end(*_):
    with file.with_suffix(".asked").open("a") as asked:
        asked.write("asked\\n")
    time.sleep(0.3)  # for a second one, which would come in between
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
file.with_suffix(f".{time.time_ns()}.begun").touch()
print("said by", file.name, flush=True)
time.sleep(seconds)
file.with_suffix(f".{time.time_ns()}.ended").touch()
sys.exit(code)
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Cases of the form (name, seconds, code), of which jobs for `here` are made."""

    def made(*wanted: tuple[str, float, int]) -> list[tuple[Case, list[str]]]:
        jobs = []
        for name, seconds, code in wanted:
            line = [sys.executable, "-c", PLAY, str(seconds), str(code), str(tmp_path / name)]
            jobs.append((Case("train", name, ()), line))
        return jobs

    (tmp_path / "logs").mkdir()
    return made


def test_cases_run_so_many_at_a_time_and_say_how_they_ended(tmp_path, play, capsys):
    names = ["a", "b", "c", "d"]
    sweep.here(tmp_path, play(*((name, 0.2, code) for name, code in zip(names, (0, 3, 0, 0), strict=True))), 2)
    assert [sweep.outcome(tmp_path, Case("train", name, ())) for name in names] == [0, 3, 0, 0]
    assert (tmp_path / "logs" / "b.log").read_text() == "said by b\n"
    ends = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ended: ")]
    assert [line.split()[1] for line in ends if "; see" in line] == ["b,"] and len(ends) == 4
    times = sorted((int(f.name.split(".")[1]), f.suffix) for f in tmp_path.glob("*.*.*"))
    running, most = 0, 0
    for _, what in times:
        running += 1 if what == ".begun" else -1
        most = max(most, running)
    assert most == 2


def test_a_case_that_a_signal_ended_has_not_ended_well(tmp_path):
    line = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    (tmp_path / "logs").mkdir()
    sweep.here(tmp_path, [(Case("train", "a", ()), line)], 1)
    assert sweep.outcome(tmp_path, Case("train", "a", ())) == cli.FAILED


def test_an_interrupted_sweep_asks_its_cases_to_end_and_waits_for_them(tmp_path, play, monkeypatch):
    jobs = play(("a", 60, 0), ("b", 60, 0), ("c", 60, 0))
    looked: list[int] = []

    def sleep(seconds: float, slept=time.sleep) -> None:
        slept(seconds)
        if len(list(tmp_path.glob("*.begun"))) == 2 and not looked:
            looked.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sweep.here(tmp_path, jobs, 2)
    assert time.monotonic() - begin < 30
    assert sorted(f.name for f in tmp_path.glob("*.asked")) == ["a.asked", "b.asked"], "and the third never began"
    ended = [sweep.outcome(tmp_path, case) for case, _ in jobs]
    assert ended == [cli.INTERRUPTED, cli.INTERRUPTED, None]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path) -> Path:
    return runs.shards(tmp_path / "data")


QUICK = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
lr = float(next(word for word in sys.argv if word.startswith("--lr=")).partition("=")[2])
lines = [{"event": "step", "step": 3, "loss": lr, "tokens_per_s": 9.5}, {"event": "val", "loss": 2 * lr}]
with (out / "train.jsonl").open("a") as file:
    file.writelines(json.dumps(line) + "\\n" for line in lines)
print("--resume" in sys.argv)
"""


def test_a_sweep_is_read_and_gone_on_with(tmp_path, monkeypatch):
    """Two learning rates; one case was cut off and so runs again, the other is left alone."""
    plain = Case.command
    quick = lambda self, *given: [sys.executable, "-c", QUICK, *plain(self, *given)[3:]]  # noqa: E731
    monkeypatch.setattr(Case, "command", quick)
    out = tmp_path / "sweep"
    line = ["train", "gpt2-tiny", "-a", "lr=1e-3,1e-2", "--out", out, "--json"]
    done = commands.run("sweep", *line, "--", "--steps", 3)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["cases"]
    assert (first["name"], first["code"], first["step"], first["loss"]) == ("lr=1e-3", 0, 3, 1e-3)
    assert (second["val_loss"], second["tokens_per_s"]) == (0.02, 9.5)
    again = commands.run("sweep", *line, "--", "--steps", 3)
    assert again.returncode == 1 and "already holds this sweep" in again.stderr
    other = commands.run("sweep", *line, "--resume", "--", "--steps", 4)
    assert other.returncode == 1 and "holds another sweep" in other.stderr
    (out / "logs" / "lr=1e-2.json").unlink()
    resumed = commands.run("sweep", *line[:-1], "--resume", "--", "--steps", 3)
    assert resumed.returncode == 0 and "lr=1e-2" in resumed.stdout and "0.0200" in resumed.stdout
    logs = [(out / "logs" / f"lr={lr}.log").read_text() for lr in ("1e-3", "1e-2")]
    assert logs == ["False\n", "False\nTrue\n"]


def test_a_case_that_fails_is_the_sweep_s_exit_code(tmp_path):
    out = tmp_path / "sweep"
    done = commands.run("sweep", "train", "gpt2-tiny", "-a", "seq=x", "--out", out)
    assert done.returncode == 64 and "exit code 64" in done.stdout
    assert "'x' is not a whole number above 0" in (out / "logs" / "seq=x.log").read_text()
    assert "ended: seq=x, exit code 64" in done.stderr and "'x' is not a whole number above 0" in done.stderr
    (out / "sweep.json").write_text("{")
    broken = commands.run("sweep", "train", "gpt2-tiny", "-a", "seq=x", "--out", out, "--resume")
    assert broken.returncode == 1 and "sweep.json is damaged" in broken.stderr


@pytest.mark.slow
def test_a_sweep_of_training_runs(tmp_path, data):
    """The real command, twice: the second time there is nothing left to do."""
    out = tmp_path / "sweep"
    line = ["train", "gpt2-tiny", "-a", "lr=1e-3,1e-2", "--out", out, "--json"]
    rest = ["--", "--data", data, *runs.KERNELS, "--steps", 2]
    done = commands.run("sweep", *line, *rest)
    assert done.returncode == 0, done.stderr + (out / "logs" / "lr=1e-3.log").read_text()
    said = json.loads(done.stdout)["cases"]
    assert [(case["name"], case["code"], case["step"]) for case in said] == [("lr=1e-3", 0, 2), ("lr=1e-2", 0, 2)]
    assert said[0]["loss"] != said[1]["loss"] and (out / "lr=1e-3" / "checkpoints").is_dir()
    resumed = commands.run("sweep", *line, "--resume", *rest)
    assert resumed.returncode == 0 and json.loads(resumed.stdout)["cases"] == said


def test_records_of_layers_are_counted(tmp_path):
    case = Case("layer", "gelu", ("gelu",))
    folder = tmp_path / "gelu"
    folder.mkdir()
    record = {"schema": 1, "layer": "gelu", "variant": "v", "phase": "forward", "dtype": "fp32", "device": "cpu"}
    rows = [record | {"case_id": name, "status": status} for name, status in (("a", "wrong"), ("b", "ok"), ("a", "ok"))]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = sweep.summary(tmp_path, case)
    assert said == {"name": "gelu", "code": None, "seconds": None, "records": {"ok": 2}}


def test_what_makes_no_sense_is_told(tmp_path):
    for words, says in (
        (["train", "gpt2-tiny", "--out", tmp_path, "--gpus", 1], "with --executor slurm"),
        (["trian", "gpt2-tiny", "--out", tmp_path], "did you mean 'train'"),
        (["train", "gpt2-tiny", "--out", tmp_path, "-a", "lr"], "NAME=VALUE"),
    ):
        done = commands.run("sweep", *words)
        assert done.returncode == 64 and says in done.stderr


# ---- Slurm -----------------------------------------------------------------------------------------------------------

# As submitit 1.5: the names that are used, and a job's function called by one process for each task.
SUBMITIT = """
import multiprocessing, os, pickle

class Job:
    def __init__(self, number, processes):
        self.job_id, self.processes = f"7_{number}", processes
    def cancel(self, check=True):
        for process in self.processes:
            process.terminate()

def task(rank, function, args):
    os.environ["SLURM_PROCID"] = str(rank)
    pickle.loads(function)(*args)

class AutoExecutor:
    def __init__(self, folder, cluster):
        if os.environ.get("NO_SRUN"):
            raise RuntimeError("Could not detect srun")
        self.folder, self.cluster, self.parameters = folder, cluster, {}
    def update_parameters(self, **given):
        known = {"name", "timeout_min", "tasks_per_node", "gpus_per_node", "cpus_per_task"}
        known |= {"slurm_partition", "slurm_array_parallelism"}
        if set(given) - known:
            raise NameError(f"unknown {set(given) - known}")
        self.parameters = {k: v for k, v in given.items() if v is not None}
    def map_array(self, function, *lists):
        AutoExecutor.last = self
        fork = multiprocessing.get_context("fork")
        jobs = []
        for number, args in enumerate(zip(*lists)):
            ranks = range(self.parameters["tasks_per_node"])
            processes = [fork.Process(target=task, args=(r, pickle.dumps(function), args)) for r in ranks]
            [process.start() for process in processes]
            jobs.append(Job(number, processes))
        return jobs
"""


@pytest.fixture
def submitit(tmp_path, monkeypatch):
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "submitit.py").write_text(SUBMITIT)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "submitit", raising=False)
    yield
    sys.modules.pop("submitit", None)


def test_slurm_gets_one_job_a_case_and_ranks_have_their_logs(tmp_path, play, submitit):
    jobs = play(("a", 0, 0), ("b", 0, 5))
    sweep.on_slurm(tmp_path, jobs, Wishes(minutes=7, ranks=2, gpus=1, jobs=3, partition="p"))
    assert [sweep.outcome(tmp_path, case) for case, _ in jobs] == [0, 5]
    assert sorted(f.name for f in (tmp_path / "logs").glob("*.log")) == ["a.1.log", "a.log", "b.1.log", "b.log"]
    last = sys.modules["submitit"].AutoExecutor.last
    assert last.cluster == "slurm" and last.folder == str(tmp_path / "slurm")
    assert last.parameters == dict(
        name="bench-sweep",
        timeout_min=7,
        tasks_per_node=2,
        gpus_per_node=1,
        slurm_partition="p",
        slurm_array_parallelism=3,
    )
    sweep.on_slurm(tmp_path, [], Wishes())


def test_a_job_that_slurm_no_longer_has_is_lost_and_others_go_on(tmp_path, play, submitit, monkeypatch, capsys):
    """Cancelled while it waited, or killed: it cannot say so itself, and the sweep had waited for ever."""
    folder = tmp_path / "packages"
    squeue = folder / "squeue"
    squeue.write_text('#!/bin/sh\ntest "$*" = "--me --noheader --array --format=%i" && echo 7_1 && echo 8\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(sweep, "LOOK_S", 0.1)
    monkeypatch.setattr(sweep, "job", lost_job)
    jobs = play(("a", 0, 0), ("b", 1, 0))
    sweep.on_slurm(tmp_path, jobs, Wishes())
    assert [sweep.outcome(tmp_path, case) for case, _ in jobs] == [None, 0]
    said = capsys.readouterr().err
    assert "lost: a: job 7_0 is no longer in Slurm's queue" in said and "ended: b, exit code 0" in said
    assert "lost: b" not in said
    squeue.write_text("#!/bin/sh\nexit 1\n")  # Slurm does not answer: nobody is lost
    assert sweep._queue() is None


def lost_job(out: str, case: Case, line: list[str]) -> int:
    return 0 if case.name == "a" else job(out, case, line)


def test_a_job_that_slurm_starts_again_goes_on(tmp_path, monkeypatch):
    """Preempted, requeued, its machine lost: the first time's command line would refuse the folder that is there."""
    (tmp_path / "logs").mkdir()
    monkeypatch.setattr(sweep.signal, "signal", lambda *given: None)
    monkeypatch.setattr(Case, "command", lambda self, folder, resume: [sys.executable, "-c", f"print({resume})"])
    case = Case("train", "a", ())
    for count in (None, "0", "1"):
        monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
        if count:
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
        assert job(str(tmp_path), case, case.command(tmp_path, False)) == 0
    assert (tmp_path / "logs" / "a.log").read_text() == "False\nFalse\nTrue\n"


def test_a_sweep_that_does_not_wait_leaves_and_can_be_looked_at_later(tmp_path, play, submitit):
    jobs = play(("a", 0.5, 0))
    sweep.on_slurm(tmp_path, jobs, Wishes(wait=False))
    assert sweep.outcome(tmp_path, jobs[0][0]) is None
    until = time.monotonic() + 60
    while sweep.outcome(tmp_path, jobs[0][0]) is None and time.monotonic() < until:
        time.sleep(0.05)
    assert sweep.outcome(tmp_path, jobs[0][0]) == 0


def test_where_slurm_or_submitit_is_missing_one_line_says_so(tmp_path, play, submitit, monkeypatch):
    monkeypatch.setenv("NO_SRUN", "1")
    with pytest.raises(CannotGoOn, match="Slurm does not take the sweep: Could not detect srun"):
        sweep.on_slurm(tmp_path, play(("a", 0, 0)), Wishes())
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotGoOn, match=r"needs submitit: pip install 'layerbench\[sweep\]'"):
        sweep.on_slurm(tmp_path, play(("a", 0, 0)), Wishes())


@pytest.fixture
def slurm_job(tmp_path, play):
    """A job's process, with a case under way in it, in a session of its own as Slurm's are; and the case."""
    ((case, line),) = play(("a", 60, 0))
    code = f"from bench.trainer.sweep import Case, job; raise SystemExit(job({str(tmp_path)!r}, {case!r}, {line!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=HOME, start_new_session=True)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*.begun")) and time.monotonic() < until:
        time.sleep(0.05)
    yield process, case
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_that_slurm_ends_keeps_what_it_has(tmp_path, slurm_job, number):
    """Cancelled, or warned that its time is nearly up: all processes get the signal, and the case is asked once."""
    process, case = slurm_job
    os.killpg(process.pid, number)
    assert process.wait(60) == cli.INTERRUPTED and (tmp_path / "a.asked").read_text() == "asked\n"
    assert sweep.outcome(tmp_path, case) == cli.INTERRUPTED


def test_what_slurm_tells_the_case_itself_is_not_told_twice(tmp_path, slurm_job):
    process, _ = slurm_job
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert not (tmp_path / "a.asked").exists() and process.poll() is None
    os.kill(process.pid, signal.SIGUSR2)
    assert process.wait(60) == cli.INTERRUPTED


@pytest.fixture
def slurm():
    way = "docs/scaling.md says how a single node is set up"
    if not shutil.which("sbatch"):
        pytest.skip(f"no Slurm (sbatch) here; {way}")
    if "UP" not in subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=60).stdout.split():
        pytest.skip(f"Slurm is installed, and no controller answers; {way}")


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
@pytest.mark.skipif(find_spec("submitit") is None, reason="no submitit here: pip install 'layerbench[sweep]'")
def test_a_real_slurm_runs_a_sweep(tmp_path, data):
    out = tmp_path / "sweep"
    line = ["train", "gpt2-tiny", "-a", "seed=0,1", "--executor", "slurm", "--minutes", 5, "--out", out, "--json"]
    rest = ["--", "--data", data, "--kernels", "torch.eager", "--batch", 1, "--seq", 8, "--steps", 2, "--threads", 1]
    done = commands.run("sweep", *line, *rest)
    assert done.returncode == 0, done.stderr
    assert [case["step"] for case in json.loads(done.stdout)["cases"]] == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_real_slurm_ends_ranks_at_a_time_limit_and_their_checkpoint_is_whole(tmp_path, data):
    """slurmstepd and srun both send SIGTERM: the run had ended without its checkpoint. Takes Slurm's least limit, a
    minute."""
    out, log = tmp_path / "run", tmp_path / "log"
    options = ["--data", data, "--kernels", "torch.eager", "--batch", 1, "--seq", 8, "--steps", 10**6, "--threads", 1]
    line = ["python", "-m", "bench.train", "gpt2-tiny", *options, "--lr", 1e-5, "--out", out]
    script = f"srun {' '.join(map(str, [sys.executable, *line[1:]]))}"
    batch = ["sbatch", "--wait", "--ntasks=2", "--time=1", f"--output={log}", f"--chdir={HOME}", f"--wrap={script}"]
    subprocess.run(batch, timeout=400)
    said = log.read_text()
    assert "ended by SIGTERM after step" in said, said
    (kept,) = (out / "checkpoints").glob("step-*")
    assert f"ended by SIGTERM after step {int(kept.name.partition('-')[2])}:" in said

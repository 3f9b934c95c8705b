"""A training run goes on bit for bit, whatever ended it, and says what went wrong."""

import json
import random
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch

from bench import cli
from bench.checkpoints import run as checkpoints
from bench.core.files import DiskFull
from bench.models import step as steps
from bench.trainer import build, loop, outliers
from bench.trainer.journal import events
from reference.models import MODELS
from tests import commands
from tests.bench.trainer.runs import SMALL, kept, losses, shards, start, told, train

WAYS = {
    "fp32": ("--dtype", "fp32"),
    "bf16": ("--dtype", "bf16"),
    "rounded at random": ("--dtype", "bf16", "--no-masters"),
}
# All that a step may depend on: accumulation, shuffling over epochs, a schedule, updates left out by z-score.
ALL = (
    *("--total-batch", 48, "--lr", 0.01, "--schedule", "wsd", "--warmup", 3, "--final-fraction", 0.1),
    *("--skip-loss-z", 0.5, "--skip-norm-z", 0.5, "--steps", 24),
)


@pytest.fixture
def window(monkeypatch):
    """Values are judged by the last five."""
    monkeypatch.setattr(outliers, "WINDOW", 5)


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_bit_for_bit(data, tmp_path, window, way):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*WAYS[way], *ALL, "--checkpoint-every", 5, "--keep-last", 9)
    assert train(data, *options, "--out", whole).returncode == cli.OK
    skipped = [e["step"] for e in told(whole, "step") if e["skipped"]]
    assert {11, 12, 13, 14} & set(skipped)  # soon after the first cut, so what the window held before it mattered
    shutil.copytree(whole, parts)
    for cut in (10, 20):
        for folder in (parts / "checkpoints").glob("step-*"):
            if int(folder.name[5:]) > cut:
                shutil.rmtree(folder)
        lines = [e for e in events(parts) if e["step"] <= cut]
        (parts / "train.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
        done = train(data, *options, "--out", parts, "--resume", "--data-threads", 3)
        assert done.returncode == cli.OK, done.stderr
        assert told(parts, "resume")[-1]["step"] == cut
    assert losses(parts) == losses(whole)
    assert kept(parts, 24) == kept(whole, 24)


def test_a_run_that_remembers_less_is_another(data, tmp_path, window):
    """Were the window not kept, other updates would be left out: the test above can fail."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*ALL, "--checkpoint-every", 10, "--keep-last", 9)
    train(data, *options, "--out", whole)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000020")
    shutil.rmtree(parts / "checkpoints" / "step-00000024")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.trainer.loop.Outliers", lambda values=(): outliers.Outliers())
        train(data, *options, "--out", parts, "--resume")
    assert kept(parts, 24) != kept(whole, 24)


def test_it_learns(data, tmp_path):
    out = tmp_path / "run"
    done = train(data, "--steps", 60, "--lr", 0.01, "--val-every", 30, "--val-batches", 4, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    first, _, last = (e["loss"] for e in told(out, "val"))
    assert last < first - 0.5
    assert [e["step"] for e in told(out, "val")] == [0, 30, 60]
    assert len(done.stdout.splitlines()) == 60 + 3 + 1  # a line a step, and a look, and where it is


def test_a_torn_checkpoint_is_named_and_passed_over(data, tmp_path):
    out = tmp_path / "run"
    train(data, "--steps", 6, "--checkpoint-every", 2, "--out", out)
    before = losses(out)
    whole = (out / "checkpoints" / "step-00000006" / "weights.safetensors").read_bytes()
    (out / "checkpoints" / "step-00000006" / "weights.safetensors").write_bytes(whole[:-9])
    done = train(data, "--steps", 6, "--checkpoint-every", 2, "--out", out, "--resume")
    assert done.returncode == cli.OK
    assert "step 6 is torn: weights.safetensors has" in done.stderr
    assert told(out, "resume")[0]["step"] == 4
    assert losses(out) == before
    assert (out / "checkpoints" / "step-00000006" / "weights.safetensors").read_bytes() == whole


def test_what_may_not_change_is_refused(data, tmp_path):
    out = tmp_path / "run"
    train(data, "--steps", 2, "--out", out)
    untouched = kept(out, 2)
    for options, says in [
        (("--lr", 0.5), "--lr: the run was begun with 0.0003, not with 0.5"),
        (("--seed", 3), "--seed: the run was begun with 0, not with 3"),
        (("--dtype", "bf16"), "--dtype: the run was begun with fp32, not with bf16"),
        (("--total-batch", 32), "--total-batch: the run was begun with 16, not with 32"),
    ]:
        done = train(data, *options, "--out", out, "--resume")
        assert done.returncode == cli.USAGE
        assert says in done.stderr
    other = shards(tmp_path / "other", seed=1)
    done = train(other, "--out", out, "--resume")
    assert done.returncode == cli.FAILED
    assert "the data are not those that the run was begun with" in done.stderr
    assert kept(out, 2) == untouched


def test_a_run_is_not_written_over(data, tmp_path):
    out = tmp_path / "run"
    train(data, "--steps", 1, "--out", out)
    lines = (out / "train.jsonl").read_bytes()
    done = train(data, "--steps", 1, "--out", out)
    assert done.returncode == cli.FAILED
    assert "already holds a run" in done.stderr
    assert (out / "train.jsonl").read_bytes() == lines


def test_resume_begins_where_there_is_nothing(data, tmp_path):
    """So that torchrun may repeat one command."""
    out = tmp_path / "run"
    done = train(data, "--steps", 2, "--out", out, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert sorted(losses(out)) == [1, 2]


def test_what_has_ended_says_so_at_once(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(data, "--steps", 2, "--out", out)
    lines = (out / "train.jsonl").read_bytes()
    chosen: list[int] = []
    choose = build.choose_kernels

    def counted(*arguments):
        chosen.append(1)
        return choose(*arguments)

    monkeypatch.setattr(build, "choose_kernels", counted)
    done = train(data, "--out", out, "--resume")
    assert done.returncode == cli.OK and not chosen
    assert "nothing is left to do: all 2 steps are taken" in done.stderr and str(out) in done.stdout
    assert (out / "train.jsonl").read_bytes() == lines
    (out / "train.jsonl").write_bytes(lines[: lines.rindex(b"{")])  # cut off before what follows the last step
    assert train(data, "--out", out, "--resume").returncode == cli.OK
    assert chosen and told(out, "end")


def test_data_that_disappear_end_it_with_a_checkpoint(tmp_path):
    data, out = shards(tmp_path / "data"), tmp_path / "run"
    real = steps.Step.update

    def update(self, lr, plain=False):
        real(self, lr, plain)
        if self.memory.step.item() == 3:
            shutil.rmtree(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.Step, "update", update)
        done = train(data, "--steps", 9, "--out", out)
    assert done.returncode == cli.FAILED
    assert "has disappeared while training read from it" in done.stderr
    (found,) = (out / "checkpoints").glob("step-*")
    assert int(found.name[5:]) == max(losses(out)) >= 3


def test_waiting_for_data_is_on_the_clock(data, tmp_path, monkeypatch):
    out, next_ = tmp_path / "run", loop.Training._next

    def late(*given):
        time.sleep(0.3)
        return next_(*given)

    monkeypatch.setattr(loop.Training, "_next", late)
    assert train(data, "--steps", 2, "--out", out).returncode == cli.OK
    assert all(e["ms"] >= 300 for e in told(out, "step"))


# --- what is not finite ---


def spoiled(step_number: int, until: int, call: str, output: str):
    """A Step one call of which writes an infinity, in some of its steps (the first is 1)."""
    real = steps.Step.measure

    def measure(self, batches, plain=False):
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 1:
            at = next(i for i, c in enumerate(self.first_calls) if str(c.id) == call)
            function, args, outputs = self.first[at]

            def wrong(*args, **outputs):
                function(*args, **outputs)
                if step_number <= self.taken <= until:
                    outputs[output].view(-1)[5] = torch.inf

            self.first[at] = self.last[at] = (wrong, args, outputs)
        return real(self, batches, plain)

    return measure


def test_a_step_that_is_not_finite_is_told_with_its_first_tensor(data, tmp_path, monkeypatch):
    """Its update is left out, and training goes on."""
    monkeypatch.setattr(steps.Step, "measure", spoiled(3, 3, "matmul/fc forward", "pre_gelu"))
    out = tmp_path / "run"
    done = train(data, "--steps", 5, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    assert "step 3, rank 0: not finite, first in pre_gelu of matmul/fc forward, call 1 of 2" in done.stderr
    assert [e["skipped"] for e in told(out, "step")] == [None, None, "not finite", None, None]
    assert told(out, "not-finite")[0]["step"] == 3
    rest = json.loads((out / "checkpoints" / "step-00000005" / "state.json").read_text())["rest"]
    assert rest["updates"] == 4


def test_after_too_many_it_ends_and_names_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(steps.Step, "measure", spoiled(4, 99, "attention forward", "out"))
    out = tmp_path / "run"
    done = train(data, "--steps", 20, "--checkpoint-every", 3, "--not-finite", 4, "--out", out)
    assert done.returncode == cli.WRONG
    assert "4 steps in a row were not finite: the last good checkpoint is" in done.stderr
    assert "step-00000006" in done.stderr  # the weights are still those of step 3, and finite
    assert max(losses(out)) == 7


# --- what ends it ---


LONG = ("--steps", 40, "--checkpoint-every", 4, "--keep-last", 2, "--lr", 0.01, "--total-batch", 32)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, SMALL.name, SMALL)
        done = train(data, *LONG, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    return out


def at_update(monkeypatch, number: int, do) -> None:
    """Something that happens within a step, in its update of that number."""
    real = steps.Step.update

    def update(self, lr, plain=False):
        real(self, lr, plain)
        if self.memory.step.item() == number:
            do()

    monkeypatch.setattr(steps.Step, "update", update)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_a_checkpoint_when_it_is_asked_to(data, tmp_path, uninterrupted, monkeypatch, number):
    out = tmp_path / "run"
    before = signal.signal(number, signal.default_int_handler)
    with monkeypatch.context() as patch:
        at_update(patch, 6, lambda: signal.raise_signal(number))
        done = train(data, *LONG, "--out", out)
    assert done.returncode == cli.INTERRUPTED
    assert f"ended by {number.name} after step 6: go on with" in done.stderr
    assert told(out, "checkpoint")[-1]["step"] == max(losses(out)) == 6
    done = train(data, *LONG, "--out", out, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert losses(out) == losses(uninterrupted)
    assert kept(out, 40) == kept(uninterrupted, 40)
    assert signal.signal(number, before) is signal.default_int_handler  # the command left what it found


def test_asked_twice_it_ends_at_once_and_loses_nothing(data, tmp_path, uninterrupted, monkeypatch):
    out = tmp_path / "run"
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)

    def twice() -> None:
        while checkpoints.why_torn(out / "checkpoints" / "step-00000004"):  # it is written beside the steps
            time.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        at_update(patch, 6, twice)
        done = train(data, *LONG, "--out", out)
    signal.signal(signal.SIGTERM, before)
    assert done.returncode == cli.INTERRUPTED
    assert max(losses(out)) == 5  # of the step under way nothing is said
    done = train(data, *LONG, "--out", out, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert told(out, "resume")[0]["step"] == 4
    assert kept(out, 40) == kept(uninterrupted, 40)


def killed_and_resumed(data, out, uninterrupted, kills: int, seed: int) -> None:
    """SIGKILL and SIGTERM at random moments, and once more each time; in the end nothing is different."""
    draw = random.Random(seed)
    for _ in range(kills):
        before = len(events(out))
        process = start(data, *LONG, "--out", out, "--resume")
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end and len(events(out)) <= before + 1:
            time.sleep(0.005)  # until it has begun
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
        process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, cli.INTERRUPTED, cli.OK)
    done = train(data, *LONG, "--out", out, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert losses(out) == losses(uninterrupted)
    assert kept(out, 40) == kept(uninterrupted, 40)


def test_killed_at_random_moments_it_comes_to_the_same(data, tmp_path, uninterrupted):
    killed_and_resumed(data, tmp_path / "run", uninterrupted, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_thirty_times(data, tmp_path, uninterrupted, seed):
    killed_and_resumed(data, tmp_path / "run", uninterrupted, 3, 100 + seed)


def memory_growth(data, out, count: int) -> int:
    """Bytes of peak memory that a run takes after its first quarter, with looks and checkpoints all the while."""
    often = ("--val-every", 20, "--val-batches", 1, "--sample-every", 20, "--sample-tokens", 2)
    done = train(data, "--steps", count, "--checkpoint-every", 20, *often, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    peaks = [e["memory_bytes"] for e in told(out, "step")]
    return peaks[-1] - peaks[count // 4]


def test_memory_does_not_grow(data, tmp_path):
    assert memory_growth(data, tmp_path / "run", 120) < 4 << 20


@pytest.mark.slow
def test_memory_does_not_grow_over_a_thousand_steps(data, tmp_path):
    assert memory_growth(data, tmp_path / "run", 1000) < 4 << 20


# --- the rest ---


def test_a_full_disk_costs_the_checkpoint_under_way(data, tmp_path, monkeypatch):
    out, whole = tmp_path / "run", tmp_path / "whole"
    options = ("--steps", 9, "--checkpoint-every", 3)
    train(data, *options, "--out", whole)
    real = checkpoints.Held.write

    def write(self, folder):
        if self.step == 6:
            raise DiskFull("no space left to write it")
        return real(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Held, "write", write)
        done = train(data, *options, "--out", out)
    assert done.returncode == cli.FAILED
    assert "no space left" in done.stderr
    assert [folder.name for folder in (out / "checkpoints").glob("step-*")] == ["step-00000003"]
    done = train(data, *options, "--out", out, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert kept(out, 9) == kept(whole, 9)


GPU = ("--device", "tests.fake_gpu:FakeGpu", "--dtype", "fp32", "--steps", 6, "--val-every", 3, "--val-batches", 1)


def test_on_a_gpu_the_step_is_recorded_and_the_same(data, tmp_path, monkeypatch):
    """Looks between the steps do not disturb the graphs; without masters too."""
    recorded: list[bool] = []
    real = steps.Step.update

    def update(self, lr, plain=False):
        recorded.append(self.replay is not None)
        real(self, lr, plain)

    monkeypatch.setattr(steps.Step, "update", update)
    for more in ((), ("--dtype", "bf16", "--no-masters")):
        graph, plain = tmp_path / f"graph{len(more)}", tmp_path / f"plain{len(more)}"
        done = train(data, *GPU, *more, "--out", graph)
        assert done.returncode == cli.OK, done.stderr
        done = train(data, *GPU, *more, "--no-graph", "--out", plain)
        assert done.returncode == cli.OK, done.stderr
        assert losses(graph) == losses(plain)
        assert kept(graph, 6) == kept(plain, 6)
        assert [e["loss"] for e in told(graph, "val")] == [e["loss"] for e in told(plain, "val")]
    assert recorded == ([True] * 6 + [False] * 6) * 2


def test_it_starts_from_weights(data, tmp_path):
    """Of another run, and training starts afresh."""
    first, second = tmp_path / "first", tmp_path / "second"
    train(data, "--steps", 20, "--lr", 0.01, "--out", first)
    done = train(data, "--steps", 3, "--from", first, "--out", second)
    assert done.returncode == cli.OK, done.stderr
    assert losses(second)[1][0] < losses(first)[1][0] - 0.5
    assert told(second, "start")[0]["step"] == 0
    rest = json.loads((second / "checkpoints" / "step-00000003" / "state.json").read_text())["rest"]
    assert rest["updates"] == 3
    done = train(data, "--steps", 3, "--from", data / "a_train.bin", "--out", tmp_path / "third")
    assert done.returncode == cli.FAILED
    assert not (tmp_path / "third" / "checkpoints").exists()


def test_kernels_of_the_run_are_taken_again(data, tmp_path):
    """Without a race: with what kernels.json names, where nothing else is said."""
    out = tmp_path / "run"
    train(data, "--steps", 2, "--out", out)
    words = ("--data", data, "--out", out, "--resume", "--threads", 1)
    chosen = json.loads((out / "kernels.json").read_text())
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    train(data, "--steps", 4, "--checkpoint-every", 2, "--out", tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step-00000002", out / "checkpoints" / "step-00000002")
    told_before = len(told(out, "resume"))
    done = commands.run("train", *words)
    assert done.returncode == cli.OK, done.stderr
    resumed = told(out, "resume")[told_before]
    assert resumed["kernels"] == {call: entry["variant"] for call, entry in chosen["kernels"].items()}
    assert "chosen beforehand" in resumed["chosen"]
    assert max(losses(out)) == 4


def test_an_end_that_is_asked_for_does_not_wait_for_a_look(data, tmp_path, monkeypatch):
    """Questions may take an hour on a CPU. What was not finished is not told."""
    out = tmp_path / "run"
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    real, seen = steps.Step.evaluate, []

    def evaluate(self, batch):
        seen.append(1)
        if len(seen) == 9:
            signal.raise_signal(signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(steps.Step, "evaluate", evaluate)
    done = train(data, "--steps", 9, "--val-every", 2, "--val-batches", 6, "--out", out)
    signal.signal(signal.SIGTERM, before)
    assert done.returncode == cli.INTERRUPTED
    assert len(seen) == 9
    assert [e["step"] for e in told(out, "val")] == [0]
    assert told(out, "checkpoint")[-1]["step"] == 2 == max(losses(out))


def test_weights_that_are_not_finite_are_not_kept(data, tmp_path, monkeypatch):
    """An update may overflow where loss and norm did not: the checkpoint before it stays the last."""
    out = tmp_path / "run"
    real = steps.Step.update

    def update(self, lr, plain=False):
        real(self, lr, plain)
        if self.memory.step.item() == 4:
            self.memory.params["h1.fc.weight"][0, 0] = torch.inf

    monkeypatch.setattr(steps.Step, "update", update)
    done = train(data, "--steps", 20, "--checkpoint-every", 2, "--not-finite", 3, "--sample-every", 1, "--out", out)
    assert done.returncode == cli.WRONG
    assert "no checkpoint after step 4: a weight is not finite" in done.stderr
    assert "first in parameter h1.fc.weight, before the step" in done.stderr
    assert "the last good checkpoint is" in done.stderr and "step-00000002" in done.stderr
    assert [e["path"] for e in told(out, "checkpoint")] == ["checkpoints/step-00000002"]
    assert told(out, "end")[-1]["why"].startswith("3 steps in a row were not finite")


def test_a_checkpoint_without_a_run_is_not_gone_on_with(data, tmp_path):
    out = tmp_path / "run"
    train(data, "--steps", 2, "--out", out)
    state = checkpoints.load(out / "checkpoints" / "step-00000002", SMALL)
    other = tmp_path / "other"
    checkpoints.save(other / "checkpoints", replace(state, rest={}))
    done = train(data, "--out", other, "--resume")
    assert done.returncode == cli.FAILED
    assert "has weights and no run to go on with" in done.stderr
    assert train(data, "--steps", 1, "--from", other, "--out", tmp_path / "third").returncode == cli.OK


def test_a_constant_rate_may_go_on_for_longer(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, "--schedule", "constant", "--steps", 8, "--out", whole)
    train(data, "--schedule", "constant", "--steps", 5, "--out", parts)
    done = train(data, "--steps", 8, "--out", parts, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert losses(parts) == losses(whole)
    assert kept(parts, 8) == kept(whole, 8)


def test_what_cannot_fit_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.machine.facts.available_bytes", lambda: 100_000)
    done = train(data, "--steps", 2, "--out", tmp_path / "run")
    assert done.returncode == cli.FAILED
    assert "GB are free" in done.stderr

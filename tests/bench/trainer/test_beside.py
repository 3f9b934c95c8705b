"""PyTorch's training beside ours: the same losses where ours is right, and a verdict where it is not."""

import pytest

from bench import cli, train
from bench.cli import CannotGoOn
from bench.models import step as steps
from bench.trainer.plan import plan_of
from tests.bench.trainer.runs import losses, told
from tests.bench.trainer.runs import train as run

OPTIONS = ("--steps", 7, "--warmup", 2, "--lr", 0.01, "--total-batch", 32, "--baseline", "eager", "--parity-every", 4)


@pytest.mark.slow
def test_ours_stays_in_the_band_of_pytorchs_runs_until_an_update_is_wrong(data, tmp_path, monkeypatch):
    """From the fifth step on the learning rate is not the schedule's. The run goes on, and its exit code says so."""
    real = steps.Step.update

    def update(self, lr, plain=False):
        real(self, lr * (1.1 if self.memory.step.item() >= 4 else 1.0), plain)

    monkeypatch.setattr(steps.Step, "update", update)
    out = tmp_path / "run"
    done = run(data, *OPTIONS, "--out", out)
    assert done.returncode == cli.WRONG, done.stderr
    theirs = {e["step"]: e["loss"] for e in told(out, "baseline")}
    ours = losses(out)
    assert theirs.keys() == ours.keys() == set(range(1, 8))
    for step in range(1, 6):
        assert theirs[step] == pytest.approx(ours[step][0], rel=1e-4)
    assert [(e["step"], e["parity"]) for e in told(out, "parity")] == [(4, True), (7, False)]
    assert "parity with PyTorch: loss at most" in done.stdout
    assert "parity with PyTorch failed: step 6: " in done.stderr
    assert told(out, "checkpoint")[-1]["step"] == 7


@pytest.mark.parametrize(
    ("words", "ranks", "why"),
    [
        (("compile", "--no-masters", "--dtype", "bf16"), 1, "does not go with --no-masters"),
        (("compile", "--skip-norm-z", "3"), 1, "does not go with --skip-norm-z"),
        (("fsdp2", "--skip-norm-z", "3"), 2, "does not go with --skip-norm-z"),
        (("compile",), 2, "of several ranks it is fsdp2"),
        (("fsdp2",), 1, "is of several ranks"),
    ],
)
def test_what_pytorch_does_not_do_is_refused(words, ranks, why):
    options = train.parser().parse_args(["gpt2-tiny", "--threads", "1", "--baseline", *words])
    with pytest.raises(CannotGoOn, match=why) as caught:
        plan_of(vars(options), ranks)
    assert caught.value.code == cli.USAGE

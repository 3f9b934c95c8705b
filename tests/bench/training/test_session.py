"""`bench.e2e`: right kernels pass the gate and are timed, wrong ones fail it and get no MFU; it learns."""

import csv
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from bench import HOME, cli, e2e
from bench.core.variants import discover
from bench.models import choose
from bench.models.program import step_calls
from bench.records.read import latest, read_records
from bench.text import shards as data
from bench.training.contestants import Contestant
from bench.training.gate import Gate, NotFinite
from bench.training.rooms import Job, JudgeRoom, OurRoom, Room, TorchRoom
from reference.models.gpt2 import GPT2
from reference.models.model import Model
from tests import commands, truth_variants
from tests.commands import Done

ROOT = HOME
SMALL = GPT2("small", L=2, NH=2, C=32, max_t=24, v=300)
STEPS, LR = 6, 1e-3


def command(*arguments: object) -> Done:
    return commands.run("e2e", *arguments)


# --- command line ---


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gpt2-124"], 64, "did you mean 'gpt2-124m'"),
        (["gpt2-tiny", "--kernel", "fastest"], 64, "did you mean '--kernels'"),
        (["gpt2-tiny", "--dtype", "bf61"], 64, "did you mean 'bf16'"),
        (["gpt2-tiny", "--batch", "0"], 64, "0"),
        (["gpt2-tiny", "--seq", "129"], 64, "128 positions"),
        (["gpt2-tiny", "--baseline", "eagre"], 64, "did you mean 'eager'"),
        (["gpt2-tiny", "--kernels", "attention=torch.eagr"], 64, "did you mean 'torch.eager'"),
        (["gpt2-tiny", "--swap", "cpu.naive"], 64, "LAYER=VARIANT"),
        (["gpt2-tiny", "--data", "no/such/file.bin"], 1, "no/such/file.bin"),
    ],
)
def test_usage_errors(arguments, code, message, ended):
    found, errors = ended(e2e, *arguments)
    assert found == code and message in errors


def test_what_does_not_fit_is_refused(monkeypatch):
    from bench import e2e
    from bench.machine import facts

    monkeypatch.setattr(facts, "available_bytes", lambda: 2 << 30)
    with pytest.raises(cli.CannotGoOn, match=r"5 trainings of gpt2-124m side by side need about 12\.4 GB"):
        e2e.main(["gpt2-124m", "--kernels", "torch.eager", "--data", str(ROOT / "no such file.bin")])


# --- the whole command ---

CHANGE = ("predicted_alone_s", "predicted_in_context_s", "change_s", "change_low_s", "change_high_s")
QUICK = ("gpt2-tiny", "--batch", 1, "--seq", 16, "--steps", 3, "--threads", 1, "--baseline", "eager")


def shards(folder: Path, vocabulary: int = 1000) -> Path:
    """A few thousand tokens, so that the data set need not be built."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, vocabulary, 5000).astype(np.uint16)
    data.write_tokens(folder / "train.bin", tokens)
    return folder / "train.bin"


def rows_of(out: Path) -> list[dict]:
    """The last record of each contestant."""
    records, problems = read_records(out)
    assert not problems
    return [dict(r) for r in latest(records).values()]


def test_a_right_step_is_timed(tmp_path, few_tokens):
    out = tmp_path / "run"
    swap = ("--swap", "layernorm=torch.truth")
    kernels = f"torch.eager,{truth_variants.write(tmp_path / 'kernels')}"
    done = command(*QUICK, *swap, "--kernels", kernels, "--data", shards(tmp_path), "--out", out, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["parity"] is True
    assert [c["variant"] for c in document["contestants"]] == ["ours", "ours, layernorm=torch.truth", "torch.eager"]
    for row in document["contestants"]:
        assert row["mfu_palm_of_ceiling"] > 0
        assert row["mfu_palm_of_datasheet"] is None  # a CPU: unknown is not a number
        assert len(row["losses"]) == 5
    parts = document["reconciliation"]
    assert parts["layers_s"] > 0 < parts["gaps_s"]
    assert parts["layers_s"] + parts["gaps_s"] + parts["remainder_s"] == pytest.approx(parts["step_s"])
    ours, swapped, eager = rows_of(out)
    change = {name: swapped[name] for name in CHANGE}
    assert document["swaps"] == [{"swap": "layernorm=torch.truth"} | change]
    assert not {*CHANGE} & {*ours, *eager} and "alone_s" not in eager
    swapped_keys = [key for key, name in swapped["kernels"].items() if name == "torch.truth"]
    assert swapped_keys and all(key.startswith("layernorm") for key in swapped_keys)
    for row in (ours, swapped):
        assert set(row["alone_s"]) == set(swapped_keys), "the rest was named, and so never raced"
    for field, predicted in (("alone_s", "predicted_alone_s"), ("in_context_s", "predicted_in_context_s")):
        wanted = sum(swapped[field][key] - ours[field][key] for key in swapped_keys)
        assert change[predicted] == pytest.approx(wanted), field
    assert change["change_low_s"] <= change["change_s"] <= change["change_high_s"]
    shown = [f"{change[name] * 1e3:+.3g}" for name in CHANGE]
    assert "layernorm=torch.truth {} {} {} [{}, {}]".format(*shown) in " ".join(done.stdout.split()), shown
    assert "parity: ok" in done.stdout
    rows = list(csv.DictReader((out / "e2e.csv").open()))
    assert [r["status"] for r in rows] == ["ok"] * 3
    assert [r["change_s"] for r in rows] == ["", str(change["change_s"]), ""]
    assert float(rows[0]["tokens_per_s"]) > 0
    assert str(tmp_path) not in (out / "records.jsonl").read_text()


def test_a_wrong_step_gets_no_mfu(tmp_path, few_tokens):
    """Missing bias gradients: the gate says so, the exit code is 2, and no MFU is printed or kept."""
    folder = wrong_matmul(tmp_path / "kernels", "outputs['dbias'] is not None and outputs['dbias'].zero_()")
    out = tmp_path / "run"
    kernels = f"torch.eager,matmul=torch.wrong,{folder}"
    done = command(*QUICK, "--kernels", kernels, "--data", shards(tmp_path), "--out", out, "--json")
    assert done.returncode == cli.WRONG, done.stderr
    assert "parity: FAILED" in done.stdout
    assert ".bias is 0" in done.stdout
    assert not any(
        key.startswith("mfu") for row in json.loads(done.stdout.splitlines()[-1])["contestants"] for key in row
    )
    rows = list(csv.DictReader((out / "e2e.csv").open()))
    assert rows[0]["status"] == "wrong"
    assert rows[0]["mfu_palm_of_ceiling"] == ""


@pytest.mark.slow
def test_a_clock_that_a_kernel_replaced_ends_the_run(tmp_path, few_tokens):
    folder = wrong_matmul(tmp_path / "kernels", "from bench.machine import devices; devices.WallTimer.stop = slow")
    file = folder / "torch" / "matmul" / "wrong.py"
    file.write_text(file.read_text() + "\n\ndef slow(timer):\n    timer.seconds.append(1e-3)\n")
    kernels = f"torch.eager,matmul=torch.wrong,{folder}"
    done = command(*QUICK, "--kernels", kernels, "--data", shards(tmp_path), "--out", tmp_path / "run")
    assert done.returncode == cli.FAILED and "devices.WallTimer.stop" in done.stderr, done.stdout


def test_a_missing_weight_decay_is_seen_in_bf16(tmp_path, few_tokens):
    """No loss shows it: the optimizer's own state does."""
    truth_variants.write(tmp_path / "kernels", "undecayed", ("adamw",))
    file = tmp_path / "kernels" / "torch" / "adamw" / "undecayed.py"
    file.write_text(file.read_text().replace("eps, weight_decays]", "eps, [0.0] * len(grads)]"))
    out, kernels = tmp_path / "run", f"torch.eager,adamw=torch.undecayed,{tmp_path / 'kernels'}"
    done = command(*QUICK, "--dtype", "bf16", "--kernels", kernels, "--data", shards(tmp_path), "--out", out)
    assert done.returncode == cli.WRONG, done.stderr
    assert "parity: FAILED for ours" in done.stdout and "master of wte after the update is" in done.stdout
    ours, eager = list(csv.DictReader((out / "e2e.csv").open()))
    assert ours["status"] == "wrong" and eager["status"] == "ok"


def test_a_rate_at_which_pytorch_diverges_is_said(tmp_path, few_tokens):
    """No band, no verdict, no traceback."""
    out = tmp_path / "run"
    done = command(*QUICK, "--lr", "100", "--kernels", "torch.eager", "--data", shards(tmp_path), "--out", out)
    assert done.returncode == cli.FAILED and "Traceback" not in done.stderr
    assert "is not finite from step" in done.stderr and "lower --lr" in done.stderr


def test_steps_that_cannot_be_judged_are_kept(tmp_path, few_tokens, monkeypatch, capsys):
    """PyTorch's baseline diverges after an hour of training: what everybody did until then is written down."""
    from bench import e2e
    from bench.training import session

    def stray(name: str, run: list, lr: float) -> None:
        if name == "torch.eager" and len(run) == 5:
            raise NotFinite(f"{name} is not finite")

    monkeypatch.setattr(session, "must_be_finite", stray)
    out = tmp_path / "run"
    with pytest.raises(NotFinite):
        e2e.main([*map(str, QUICK), "--kernels", "torch.eager", "--data", str(shards(tmp_path)), "--out", str(out)])
    rows = rows_of(out)
    assert [r["variant"] for r in rows] == ["ours", "torch.eager"]
    for r in rows:
        assert r["status"] == "skipped" and len(r["losses"]) == 5
        assert r["evidence"] == "stopped after 5 of 5 steps, not judged: torch.eager is not finite"


def test_a_crash_names_the_contestant(tmp_path, few_tokens):
    file = truth_variants.write(tmp_path / "kernels", "crash", ("attention",)) / "torch" / "attention" / "crash.py"
    file.write_text(file.read_text() + "\n\nimport os, signal\n\ntruth_variants = None\n")
    file.write_text(
        file.read_text().replace("    truth_variants.call", "    os.kill(os.getpid(), signal.SIGSEGV)\n    #", 1)
    )
    kernels = f"torch.eager,attention=torch.crash,{tmp_path / 'kernels'}"
    done = command(*QUICK, "--kernels", kernels, "--data", shards(tmp_path), "--out", tmp_path / "run")
    assert done.returncode == cli.FAILED
    assert "ours: its process died with signal SIGSEGV" in done.stderr
    ours = next(r for r in rows_of(tmp_path / "run") if r["variant"] == "ours")
    assert ours["status"] == "crash" and "SIGSEGV" in ours["evidence"] and ours["kernels"]
    assert "Traceback" not in done.stderr


class Sleeper(Room):
    """Answers, then hangs, then leaves."""

    def nap(self, seconds: float) -> str:
        time.sleep(seconds)
        return "awake"


def test_a_hang_ends_with_the_name():
    with Contestant("the sleeper", Sleeper, Job(SMALL, 1, 8, "fp32")) as c:
        assert c.ask("nap", seconds=0, limit=60) == "awake"
        with pytest.raises(cli.CannotGoOn, match="the sleeper: no answer within"):
            c.ask("nap", seconds=60, limit=0.2)
    assert not c.process.is_alive()


# --- the gate ---


def wrong_matmul(folder: Path, spoil: str) -> Path:
    """torch.wrong: the reference, and then `spoil`, with `args` and `outputs` of a backward call."""
    truth_variants.write(folder, "wrong", ("matmul",))
    file = folder / "torch" / "matmul" / "wrong.py"
    before, backward = file.read_text().split("def backward")
    names = ("dx", "dweight", "dbias")
    backward = backward.rstrip() + f"\n    outputs = dict({', '.join(f'{n}={n}' for n in names)})\n    {spoil}\n"
    file.write_text(f"{before}def backward{backward}")
    return folder


def batches(model: Model, job: Job, steps: int = STEPS) -> list:
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.v, (steps, job.B, job.T + 1), generator=gen)
    return [[(t[:, :-1].contiguous().numpy(), t[:, 1:].contiguous().numpy())] for t in tokens]


def trajectory(room: Room, steps: list, lr: float = LR, perturbed: int | None = None) -> list:
    room.load(perturbed)
    return [room.step(b, lr, details=i == 0) for i, b in enumerate(steps)]


def our_room(job: Job, spec: str) -> OurRoom:
    parsed = choose.parse(spec)
    variants = discover(parsed.folders)
    calls = step_calls(job.model, job.B, job.T, job.dtype)
    pool = choose.candidates(parsed, variants, calls, "cpu", job.dtype)
    room = OurRoom(job)
    room.build({key: found[0] for key, found in pool.items()})
    return room


def gate(job: Job, steps: list, lr: float = LR, seeds: int = 2) -> Gate:
    judge = JudgeRoom(job)
    judge.begin(perturbed=list(range(seeds)))
    centre, *perturbed = judge.go_on(steps, lr)
    return Gate.measured(centre, perturbed)


@pytest.fixture(params=["fp32", "bf16"])
def job(request) -> Job:
    return Job(SMALL, 4, 16, request.param)


def test_pytorch_and_truth_are_inside_the_band(job, tmp_path):
    steps = batches(SMALL, job)
    found = gate(job, steps)
    folder = truth_variants.write(tmp_path)
    for room in (our_room(job, f"torch.truth,{folder}"), our_room(job, "torch.eager"), TorchRoom(job, "eager")):
        run = trajectory(room, steps)
        assert found.excesses(run) == []
        assert 0 <= found.worst(run, "loss") <= 1


WRONG = {
    "missing bias gradient": "dbias is not None and dbias.zero_()",
    "bias gradient not summed over the batch": "dbias is not None and dbias.copy_(dout[-1])",
    "weight gradient of the wrong sign": "dweight.neg_()",
    "lost scale": "dx.mul_(2)",
    "gelu backward left out": "x_pre_gelu is not None and dx.copy_(dout @ weight)",
    "half of the tokens": "dweight.copy_(dout[::2].T @ x[::2])",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_backward_fails(job, tmp_path, what):
    steps = batches(SMALL, job)
    folder = wrong_matmul(tmp_path, WRONG[what])
    run = trajectory(our_room(job, f"torch.eager,matmul=torch.wrong,{folder}"), steps)
    assert gate(job, steps).excesses(run)


def test_a_gradient_that_is_left_out_later_fails(job, tmp_path, monkeypatch):
    """Right at the first step: from the third on one bias of a matmul in eight gets no gradient."""
    steps = batches(SMALL, job)
    late = "dbias is not None and (seen.append(1), len(seen) > 8 * SMALL_L and len(seen) % 8 == 1 and dbias.zero_())"
    folder = wrong_matmul(tmp_path, late.replace("SMALL_L", str(SMALL.L)).replace("seen", "truth_variants.SEEN"))
    monkeypatch.setattr(truth_variants, "SEEN", [], raising=False)
    run = trajectory(our_room(job, f"torch.eager,matmul=torch.wrong,{folder}"), steps)
    excesses = gate(job, steps).excesses(run)
    assert any(e.step > 2 and e.what.startswith("gradient norm of") for e in excesses), excesses
    assert min(e.step for e in excesses) > 2


def test_a_two_percent_error_fails_in_fp32(tmp_path):
    job = Job(SMALL, 4, 16, "fp32")
    steps = batches(SMALL, job)
    folder = wrong_matmul(tmp_path, "x_pre_gelu is not None and dx.mul_(1.02)")
    run = trajectory(our_room(job, f"torch.eager,matmul=torch.wrong,{folder}"), steps)
    excesses = gate(job, steps).excesses(run)
    assert any("fc.weight" in str(e) for e in excesses)
    assert any(e.what == "gradient norm" for e in excesses)


def test_a_wrong_optimizer_fails(tmp_path):
    """No weight decay: the first step's loss and gradients are right, the later ones are not."""
    job = Job(SMALL, 4, 16, "fp32")
    truth_variants.write(tmp_path, "undecayed", ("adamw",))
    file = tmp_path / "torch" / "adamw" / "undecayed.py"
    file.write_text(file.read_text().replace("eps, weight_decays]", "eps, [0.0] * len(grads)]"))
    steps = batches(SMALL, job, 12)
    run = trajectory(our_room(job, f"torch.eager,adamw=torch.undecayed,{tmp_path}"), steps, lr=1e-2)
    excesses = gate(job, steps, lr=1e-2).excesses(run)
    assert excesses
    assert min(e.step for e in excesses) > 1


def run_of(losses: list[float], norms: dict[str, float] | None = None) -> list[dict]:
    return [dict(loss=x, norm=2 * x, norms=norms or {"a": 1.0}) for x in losses]


def test_the_band_is_never_of_zero_width():
    same = run_of([3.0, 2.0, 1.0])
    found = Gate.measured(same, [same, same])
    assert all(b > 0 for b in [*found.loss, *found.norm, found.gradients])
    assert found.excesses(same) == []
    assert len(found.excesses(run_of([3.0, 2.0, 1.00001]))) == 2


def test_the_band_widens_with_pytorchs_own_distance():
    centre, other = run_of([5.0] * 6), run_of([5.0, 5.0, 5.1, 5.0, 5.3, 5.0])
    found = Gate.measured(centre, [other])
    assert found.loss == pytest.approx([0.4, 0.4, 0.4, 0.4, 1.2, 1.2], rel=1e-4)
    assert found.worst(run_of([5.0, 5.0, 5.0, 5.2, 5.0, 5.0]), "loss") == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_outside(bad):
    centre = run_of([5.0, 4.0])
    found = Gate.measured(centre, [run_of([5.5, 4.5])])
    assert found.excesses(run_of([5.0, bad]))
    assert found.worst(run_of([5.0, bad]), "loss") == math.inf
    with pytest.raises(NotFinite, match="not finite"):
        Gate.measured(centre, [run_of([5.0, bad])])


def test_the_gate_names_the_parameter():
    centre = run_of([5.0], {"h0.fc.bias": 0.01, "wte": 3.0})
    found = Gate.measured(centre, [run_of([5.0], {"h0.fc.bias": 0.0101, "wte": 3.0})])
    assert [e.what for e in found.excesses(run_of([5.0], {"h0.fc.bias": 0.0, "wte": 3.0}))] == [
        "gradient norm of h0.fc.bias"
    ]


# --- contestants ---


def test_every_contestant_starts_from_the_same_parameters():
    for dtype in ("fp32", "bf16"):
        job = Job(SMALL, 2, 8, dtype, seed=5)
        ours, theirs = our_room(job, "torch.eager"), TorchRoom(job, "eager", pure=True)
        ours.load()
        theirs.load()
        for name, p in theirs.model.named().items():
            assert torch.equal(ours.memory.params[name], p), name
        assert not torch.equal(Room(job).parameters()["wte"], Room(job).parameters(perturbed=1)["wte"])


def test_a_perturbation_is_one_unit_in_the_last_place():
    for dtype, eps in (("fp32", 2.0**-23), ("bf16", 2.0**-7)):
        room = Room(Job(SMALL, 2, 8, dtype))
        plain, moved = room.parameters()["h0.fc.weight"].double(), room.parameters(perturbed=3)["h0.fc.weight"].double()
        relative = (moved / plain - 1).abs()
        assert 0 < relative.max() <= 1.5 * eps
        assert (relative > 0).float().mean() > 0.2


def test_accumulation_is_one_larger_batch():
    """Two micro-batches of two sequences train as one batch of four does."""
    whole, parts = Job(SMALL, 4, 16, "fp32"), Job(SMALL, 2, 16, "fp32", accumulation=2)
    steps = batches(SMALL, whole)
    halves = [[(x[i : i + 2], y[i : i + 2]) for i in (0, 2)] for ((x, y),) in steps]
    want = trajectory(our_room(whole, "torch.eager"), steps)
    for room in (our_room(parts, "torch.eager"), TorchRoom(parts, "eager")):
        for got, step in zip(trajectory(room, halves), want, strict=True):
            assert got["loss"] == pytest.approx(step["loss"], rel=1e-5)
            assert got["norm"] == pytest.approx(step["norm"], rel=1e-4)


# --- it learns ---


def text_tokens() -> "torch.Tensor":
    """Tiny Shakespeare where it is at hand, else source text of the standard library, a character a token."""
    file = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    text = file.read_text() if file.exists() else Path(os.__file__).read_text()
    return torch.tensor([min(ord(c), 255) for c in text[:300_000]])


def test_it_learns_as_pytorch_does():
    """100 steps on real text: our loss stays in PyTorch's band at each step, and falls clearly."""
    import numpy as np

    model = GPT2("learner", L=2, NH=2, C=64, max_t=64, v=256)
    job = Job(model, 8, 32, "fp32")
    source = data.batches(text_tokens().numpy().astype(np.uint16), job.B, job.T, seed=0)
    steps = [[next(source)] for _ in range(100)]
    lr = 2e-3
    found = gate(job, steps, lr, seeds=2)
    run = trajectory(our_room(job, "torch.eager"), steps, lr)
    assert found.excesses(run) == []
    first, last = (sum(s["loss"] for s in part) / 10 for part in (run[:10], run[-10:]))
    assert last < first - 1.0


# --- GPU kernels without a GPU ---


@pytest.mark.slow  # two minutes each
@pytest.mark.parametrize(  # each pair of them once; each kernel at each dtype is proved by itself
    ("model", "kernels", "dtype"),
    [
        ("gpt2-tiny", "triton", "fp32"),
        ("gpt2-tiny", "cuda.shared", "bf16"),
        ("llama2-tiny", "triton", "bf16"),
        ("llama2-tiny", "cuda.shared", "fp32"),
    ],
)
def test_a_step_of_gpu_kernels_is_inside_the_band_in_the_simulator(model, kernels, dtype, tmp_path):
    out = tmp_path / "run"
    where = ("--simulate", "--batch", 2, "--seq", 32, "--steps", 1, "--out", out)
    done = command(model, "--kernels", kernels, "--dtype", dtype, *where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parity: ok over 3 steps" in done.stdout and "ms/step" not in done.stdout
    (row,) = rows_of(out)
    assert row["status"] == "simulated" and "median_s" not in row
    assert {name.partition(".")[0] for name in row["kernels"].values()} == {kernels.partition(".")[0]}
    assert {key.partition("/")[0].split()[0] for key in row["kernels"]} >= {"attention", "matmul", "adamw"}


@pytest.mark.slow  # compiles every kernel of a step
def test_a_simulated_step_is_judged_and_not_timed(tmp_path):
    out = tmp_path / "right"
    where = ("--data", shards(tmp_path), "--simulate", "--seq", 8, "--batch", 1, "--steps", 1)
    done = command("gpt2-tiny", "--kernels", "torch.eager,layernorm=cuda.naive", *where, "--out", out, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["contestants"]
    assert row["kernels"]["layernorm backward"] == "cuda.naive" and row["status"] == "simulated"
    assert "median_s" not in row and "MFU" not in done.stdout
    folder = wrong_matmul(tmp_path / "kernels", "outputs['dbias'] is not None and outputs['dbias'].zero_()")
    done = command(
        "gpt2-tiny", "--kernels", f"torch.eager,matmul=torch.wrong,{folder}", *where, "--out", tmp_path / "w"
    )
    assert done.returncode == cli.WRONG and "parity: FAILED" in done.stdout


def test_gpu_kernels_are_not_trained_with_unasked(ended):
    found, errors = ended(e2e, "gpt2-tiny", "--kernels", "cuda.naive")
    assert found == cli.CANNOT_RUN and "--simulate" in errors

"""`bench.generate`: what it writes and records, how it says that kernels are wrong, and what makes no sense to it."""

import json
import struct
from pathlib import Path

import pytest

from bench import cli, generate
from bench.checkpoints import hugging_face, llama2c
from bench.core.variants import discover
from bench.generation import rooms, source
from bench.generation.pick import candidates
from bench.generation.plan import Job, calls, plan_of
from bench.machine import facts
from bench.models import chosen
from bench.records.read import latest, read_records
from bench.text import scored
from reference import contract
from reference.models import MODELS
from reference.models.llama2 import Llama2
from reference.models.plain import init_parameters
from tests import commands, truth_variants
from tools import cheats

QUICK = ("--kernels", "torch.eager", "--threads", 1, "--rounds", 2)


def rows_of(out: Path) -> dict[tuple[str, str], dict]:
    """The last record of each contestant's phases."""
    records, problems = read_records(out)
    assert not problems
    return {(r["variant"], r["phase"]): dict(r) for r in latest(records).values()}


@pytest.mark.slow  # it compiles
def test_a_ladder_beside_pytorch(tmp_path):
    """One run of the whole command: text, rates and shares, records, kernels.json, and the JSON of it all."""
    out = tmp_path / "run"
    arguments = ("llama2-tiny", "--prompt", "Once", "--steps", 6, "--ladder", "--baseline", "eager", "--json")
    done = commands.run("generate", *arguments, *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once") and "MBU" in done.stdout
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"] and said["prompt"] == [1, *(3 + b for b in b"Once")]
    assert {len(ids) for text in said["texts"] for ids in text["tokens"]} == {6}
    assert said["texts"][0]["texts"][0].startswith("Once")
    rows = rows_of(out)
    ours = [f"ours {form}" for form in ("fp32", "bf16", "q8_0")]
    assert {name for name, _ in rows} == {*ours, "torch.eager"}
    for (name, phase), row in rows.items():
        assert row["status"] == "ok" and row["tokens_per_s"] > 0
        share, work, ceiling = (
            ("mbu", "bytes", "ceiling_bytes_per_s") if phase == "decode" else ("mfu", "flops", "ceiling_flops_per_s")
        )
        assert row[share] == pytest.approx(row[work] / row["median_s"] / row[ceiling])
        assert len(row["samples"]) == 2 and row["peak_bytes"] > 0
        if name in ours:
            assert row["planned_bytes"] > row["weight_bytes"] + row["cache_bytes"] > 0
            assert row["error_ratio"] <= 1.001 and row["checked_tokens"] == 6
            assert row["kernels"]["sampling forward"] == "torch.eager" and row["in_context_s"]
    fp32, bf16, int8 = (rows[name, "decode"]["read_weights"] for name in ours)
    assert fp32 == 2 * bf16 and int8 < bf16
    assert rows["ours fp32", "prefill"]["first_token_s"] > 0
    assert json.loads((out / "kernels.json").read_text())["run"] == "generate"
    assert commands.run("report", out).returncode == 0
    page = (out / "report.html").read_text()
    assert ("Weights kept in less" in page) != ("this run ranks nothing" in page)  # a busy machine's has no ladder


def test_what_a_model_writes_cannot_steer_a_terminal(tmp_path):
    """ESC [ 2 J as byte tokens: the prompt is written out too."""
    erase = ",".join(str(3 + byte) for byte in b"\x1b[2Jx")
    quick = (*QUICK, "--prompt-ids", erase, "--steps", 1, "--no-check", "--rounds", 1, "--out", tmp_path / "run")
    done = commands.run("generate", "llama2-tiny", *quick)
    assert done.returncode == 0 and "x" in done.stdout and "\x1b" not in done.stdout
    assert ("ours", "decode") not in rows_of(tmp_path / "run"), "one token takes no step"


def test_wrong_kernels_are_told(tmp_path):
    truth_variants.write(tmp_path / "kernels", "off", ("swiglu",), "_forward = forward\n")
    file = tmp_path / "kernels" / "torch" / "swiglu" / "off.py"
    file.write_text(file.read_text() + "\n\ndef forward(x, *, out):\n    _forward(x, out=out)\n    out[:, 0] += 1e-2\n")
    kernels = f"torch.eager,swiglu=torch.off,{tmp_path / 'kernels'}"
    done = commands.run(
        "generate", "llama2-tiny", "--steps", 3, *QUICK, "--kernels", kernels, "--out", tmp_path / "run"
    )
    assert done.returncode == 2 and "WRONG" in done.stdout
    row = rows_of(tmp_path / "run")["ours", "decode"]
    assert row["status"] == "wrong" and "times as far as those of PyTorch's" in row["evidence"]


ON_THE_CLOCK = ("llama2-tiny", "--steps", 80, *QUICK, "--baseline", "none")
CHEATS = {
    # name: the layer, and what its forward does where it takes a short cut
    "late_in_the_text": ("decode_attention", "if int(lengths[0]) > 70:\n        out.mul_(0.5)"),
    "from_the_second_text_on": ("rmsnorm", "calls.append(1)\n    if len(calls) > 150:\n        out.mul_(0.5)"),
    "one_token_for_all": ("sampling", "token.fill_(7)"),
    "a_clock_of_its_own": (
        "rmsnorm",
        "import bench.machine.devices as d\n    now = d.PERF_COUNTER_NS\n    if not calls:\n        calls.append(now)\n"
        "        d.PERF_COUNTER_NS = lambda: calls[0]() // 2",
    ),
}
SAID = {
    "late_in_the_text": "on the clock: logits",
    "from_the_second_text_on": "on the clock: ",
    "one_token_for_all": "token 1 is 7, the ",
    "a_clock_of_its_own": "functions were replaced: bench.machine.devices.PERF_COUNTER_NS",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in ("from_the_second_text_on", "a_clock_of_its_own") else n
        for n in CHEATS
    ],
)
def test_who_is_right_where_it_is_judged_and_not_on_the_clock_is_told(name, tmp_path):
    """Judged before are the first 64 tokens, of a text that nobody times."""
    layer, shortcut = CHEATS[name]
    truth_variants.write(tmp_path / "kernels", name, (layer,))
    file = tmp_path / "kernels" / "torch" / layer / f"{name}.py"
    spec = contract.pass_of(contract.load(layer), "forward")
    given, made = ", ".join(spec.positional()), ", ".join(spec.keyword())
    file.write_text(
        f'"""Made up."""\n\nfrom kernels.torch.{layer} import eager\n\ncalls = []\n\n\n'
        f"def forward({given}, *, {made}):\n"
        f"    eager.forward({given}, {', '.join(f'{n}={n}' for n in spec.keyword())})\n    {shortcut}\n"
    )
    kernels = f"torch.eager,{layer}=torch.{name},{tmp_path / 'kernels'}"
    done = commands.run(
        "generate",
        "llama2-tiny",
        "--steps",
        80,
        *QUICK,
        "--kernels",
        kernels,
        "--baseline",
        "none",
        "--out",
        tmp_path / "run",
    )
    row = rows_of(tmp_path / "run")["ours", "decode"]
    assert row["status"] == "wrong" and SAID[name] in row["evidence"], row["evidence"]
    assert done.returncode == 2


EVIL = [v for v in discover((cheats.EVIL_TEXTS,)) if v.path.is_relative_to(cheats.EVIL_TEXTS)]
OPTIONS = {"sampling": ("--stream",), "q8_matmul": ("--quantise", "q8_0")}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, marks=pytest.mark.slow if cheats.read(v.path).slow else (), id=f"{v.layer}-{v.name}")
        for v in EVIL
    ],
)
def test_a_cheat_is_seen(variant, tmp_path):
    kernels = f"torch.eager,{variant.layer}={variant.name},{cheats.EVIL_TEXTS}"
    sizes = ("--prompt-tokens", 8, "--steps", 40, "--batch", 2, "--threads", 1, "--rounds", 3)
    beside = "eager" if variant.stem == "a_child_burns" else "none"
    more = ("--kernels", kernels, "--baseline", beside, *OPTIONS.get(variant.layer, ()), "--out", tmp_path / "run")
    done = commands.run("generate", "llama2-tiny", *sizes, *more)
    row = rows_of(tmp_path / "run")["ours", "decode"]
    seen = "global_state" if "global_state" in row["evidence"] else "inaccurate"
    assert row["status"] == "wrong" and seen in cheats.read(variant.path).caught_by, row["evidence"]
    assert done.returncode == cli.WRONG


@pytest.mark.parametrize(
    "drawing",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("--temperature", 0.8, "--top-p", 0.9),
        pytest.param(("--temperature", 1.3, "--top-k", 5), marks=pytest.mark.slow),
    ],
)
def test_honest_draws_on_the_clock_are_believed(drawing, tmp_path):
    done = commands.run(
        "generate", "llama2-tiny", "--steps", 80, *QUICK, *drawing, "--baseline", "none", "--out", tmp_path / "run"
    )
    assert done.returncode == 0, done.stdout
    assert {r["status"] for r in rows_of(tmp_path / "run").values()} == {"ok"}


# --- files ---

SMALL = Llama2("small", L=1, NH=2, NKV=1, C=32, H=32, max_t=16, v=260)


@pytest.fixture(scope="module")
def weights():
    return init_parameters(SMALL, 0)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_llama2cs_files_are_opened_with_their_tokenizer(tmp_path, weights, version):
    """A version 2 stays in int8, by its own groups."""
    llama2c.write_model(tmp_path / "model.bin", SMALL, weights, version=version, group=16)
    scored.write_tokenizer(tmp_path / "tokenizer.bin", scored.of_bytes(SMALL.v))
    of, codec = source.opened(str(tmp_path / "model.bin"), 0, None, text=True)
    assert isinstance(of.model, Llama2) and (of.model.L, of.model.C, of.model.v) == (1, 32, 260)
    assert of.group == (16 if version == 2 else 0)
    found = of.weights()
    assert found.named.keys() | found.quantised.keys() == weights.keys()
    assert codec.decode(source.prompt_of(codec, "ab", of.model)) in ("ab", " ab")


def test_a_hugging_face_folder_is_opened(tmp_path, weights):
    hugging_face.write_folder(tmp_path / "model", weights, SMALL)
    of, codec = source.opened(str(tmp_path / "model"), 0, None, text=False)
    assert of.weights().named.keys() == weights.keys()
    assert isinstance(codec, source.Numbers) and source.prompt_of(codec, None, of.model) == [1]


def corrupt(path: Path, what: str) -> Path:
    model = path / "model.bin"
    llama2c.write_model(model, SMALL, init_parameters(SMALL, 0), version=1)
    raw = model.read_bytes()
    model.write_bytes(
        {"cut off": raw[:-7], "too long": raw + b"1234", "foreign": struct.pack("<16i", *range(16))}[what]
    )
    return model


@pytest.mark.parametrize("what", ["cut off", "too long", "foreign"])
def test_a_damaged_file_is_one_clear_line(tmp_path, ended, what):
    path = corrupt(tmp_path, what)
    code, errors = ended(generate, path, "--steps", 2)
    assert code == 1 and str(path) in errors and len(errors.splitlines()) == 1, errors


# --- what makes no sense ---


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["llama2-15"], 64, "did you mean 'llama2-15m'"),
        (["no/such/file.bin"], 64, "no such file or folder"),
        (["llama2-tiny", "--prompt", "x" * 200], 64, "the prompt has 201 tokens, and llama2-tiny sees 128"),
        (["llama2-tiny", "--prompt-tokens", "100", "--steps", "30"], 64, "which leaves 29 after a prompt of 100"),
        (["llama2-tiny", "--prompt-ids", "1,512"], 64, "token 512: llama2-tiny knows 0 to 511"),
        (["llama2-tiny", "--prompt-ids", "1,x"], 64, "ids are whole numbers"),
        (["llama2-tiny", "--prompt-ids", "1", "--prompt", "a"], 64, "exclude each other"),
        (["llama2-tiny", "--top-p", "1.5"], 64, "at most 1"),
        (["llama2-tiny", "--stream", "--json"], 64, "not with --json"),
        (["llama2-tiny", "--group", "32"], 64, "--group goes with --quantise"),
        (["llama2-tiny", "--quantise", "q8_0", "--group", "1000"], 64, "the longest rows of llama2-tiny have 172"),
        (["llama2-tiny", "--baseline", "eagre"], 64, "did you mean 'eager'"),
        (["gpt2-tiny", "--baseline", "llama.cpp"], 64, "is given Llama 2 alone, and gpt2-tiny is of the family gpt2"),
        (["llama2-tiny", "--kernels", "gemm=cpu.naive"], 64, "did you mean 'gemv'"),
        (["llama2-tiny", "--kernels", "gemv=cpu.nave"], 64, "did you mean 'cpu.naive'"),
        (["llama2-tiny", "--quantise", "q4_0"], 64, "q8_0"),
        (["llama2-tiny", "--vocab", "no/such.bin"], 1, "no such tokenizer file"),
    ],
)
def test_usage_errors(arguments, code, message, ended):
    found, errors = ended(generate, *arguments)
    assert found == code and message in errors, errors


def test_what_does_not_fit_is_refused(monkeypatch, ended):
    monkeypatch.setattr(facts, "available_bytes", lambda: 2 << 30)
    code, errors = ended(generate, "llama2-110m", "--ladder", "--baseline", "eager")
    assert code == 1 and "llama2-110m needs about" in errors and "2.15 GB are free" in errors


def test_a_prompt_of_random_tokens_is_one():
    """Of a seed; not one token again and again."""
    for seed in ("0", "0", "1"):
        arguments = ["llama2-tiny", "--prompt-tokens", "50", "--seed", seed]
        plan = plan_of(**vars(generate.parser().parse_args(arguments)), argv=[])
        assert len(set(plan.job.prompts[0])) > 40
    assert plan.job.prompts[0] != plan_of(**vars(generate.parser().parse_args(arguments[:-2])), argv=[]).job.prompts[0]


def test_a_package_that_is_missing_is_named(monkeypatch, ended):
    monkeypatch.setattr(rooms.importlib.util, "find_spec", lambda name: None)
    code, errors = ended(generate, "llama2-tiny", "--kernels", "torch.eager", "--baseline", "llama.cpp")
    assert code == 3 and errors.strip().endswith("--baseline llama.cpp: the package llama-cpp-python is not installed")


def test_the_context_is_used_to_its_end():
    """The last token is drawn and not read again: 128 positions hold a prompt of 100 and 29 tokens more."""
    model = MODELS["llama2-tiny"]
    assert source.need_room(100, None, model, 64) == 29
    assert source.need_room(100, 29, model, 64) == 29
    assert source.need_room(128, None, model, 64) == 1


def test_on_a_gpu_a_step_is_one_graph(tmp_path):
    """Here the made-up one: the record says so. What launches call by call takes longer. The text is shown as it is
    written, by a generation of its own."""
    out = tmp_path / "run"
    device = ("--device", "tests.fake_gpu:FakeGpu", "--steps", 4, "--baseline", "eager", "--prompt", "Once", "--stream")
    done = commands.run("generate", "llama2-tiny", *device, *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "a step is one CUDA graph" in done.stdout
    assert done.stdout.startswith("Once") and done.stdout.count("Once") == 1
    rows = rows_of(out)
    ours, theirs = rows["ours", "decode"], rows["torch.eager", "decode"]
    assert ours["graph"] and ours["timer"] == theirs["timer"] == "span" and ours["weights"] == "bf16"
    assert len(ours["samples"]) == 2 and all(len(turn) == 1 for turn in ours["samples"])
    assert theirs["median_s"] > ours["median_s"]


def test_kernels_of_one_form_of_the_weights_are_no_other_ones(tmp_path):
    """Of a ladder, int8's layers can be named, and gemv, which int8 does without."""
    arguments = ["llama2-tiny", "--ladder", "--kernels", "torch.eager,q8_matmul=cpu.naive,gemv/head=cpu.naive"]
    plan = plan_of(**vars(generate.parser().parse_args(arguments)), argv=[])
    fp32, _, int8 = ({id.place: some[0].name for id, some in candidates(plan, job).pool.items()} for job in plan.jobs)
    assert fp32["gemv/head"] == int8["q8_matmul/head"] == "cpu.naive"
    assert fp32["gemv/decode-qkv"] == int8["q8_quantise/head"] == "torch.eager"


def test_who_dies_costs_its_own_row(tmp_path):
    """Ours ends its process in the middle of the timed rounds: the others have rows, and the exit code says so."""
    truth_variants.write(tmp_path / "kernels", "dies", ("swiglu",), "_forward, calls = forward, []\n")
    file = tmp_path / "kernels" / "torch" / "swiglu" / "dies.py"
    file.write_text(
        file.read_text() + "\n\ndef forward(x, *, out):\n    calls.append(1)\n    _forward(x, out=out)\n"
        "    if len(calls) > 25:\n        import os\n\n        os._exit(3)\n"
    )
    kernels = f"torch.eager,swiglu=torch.dies,{tmp_path / 'kernels'}"
    quick = (*QUICK, "--rounds", 4, "--kernels", kernels, "--no-check", "--baseline", "eager")
    done = commands.run("generate", "llama2-tiny", "--steps", 3, *quick, "--out", tmp_path / "run")
    assert done.returncode == 1 and "takes no part any more" in done.stderr
    rows = rows_of(tmp_path / "run")
    assert rows["ours", "decode"]["status"] == "crash" and "median_s" not in rows["ours", "decode"]
    assert rows["torch.eager", "decode"]["status"] == "ok" and len(rows["torch.eager", "decode"]["samples"]) == 4


Q8 = ("--quantise", "q8_0")


@pytest.mark.slow
@pytest.mark.parametrize(  # each pair of them once; each kernel is proved by itself
    ("backend", "model", "quantise"),
    [
        pytest.param("cuda", "gpt2-tiny", (), id="cuda-gpt2-fp32"),
        pytest.param("cuda", "llama2-tiny", Q8, id="cuda-llama2-q8_0"),
        pytest.param("triton", "gpt2-tiny", Q8, id="triton-gpt2-q8_0"),
        pytest.param("triton", "llama2-tiny", (), id="triton-llama2-fp32"),
    ],
)
def test_gpu_kernels_write_the_right_text_in_the_simulator(tmp_path, few_tokens, backend, model, quantise):
    """Every layer of prefill and decode that the backend has."""
    has = {v.layer for v in discover() if v.backend == backend}
    lacks = {id.layer for id in calls(plan_of_tiny(model, quantise))} - has
    kernels = ",".join([backend, *(f"{layer}=torch.eager" for layer in sorted(lacks))])
    arguments = (model, "--simulate", "--steps", 2, "--prompt-ids", "1,2,3", "--threads", 1, *quantise)
    done = commands.run("generate", *arguments, "--kernels", kernels, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path / "run")["ours", "decode"]
    assert row["status"] == "simulated" and row["checked_tokens"] == 2 and "median_s" not in row
    assert {name.partition(".")[0] for name in row["kernels"].values()} >= {backend}


def plan_of_tiny(model: str, quantise: tuple) -> Job:
    args = generate.parser().parse_args([model, "--steps", "2", "--prompt-ids", "1,2,3", *quantise])
    return plan_of(**vars(args), argv=[]).job


def test_a_stale_choice_is_raced_anew_and_said(tmp_path):
    """Of a run's kernels.json one call has another source now, and one is not in it."""
    plan = plan_of(**vars(generate.parser().parse_args(["llama2-tiny", "--kernels", "torch.eager"])), argv=[])
    choice = {id: some[0] for id, some in candidates(plan, plan.job).pool.items()}
    file = chosen.write(tmp_path, choice, chip="Another", run="generate", model="llama2-tiny", dtype="fp32", B=1, T=1)
    document = json.loads(file.read_text())
    head, norm = (next(name for name in document["kernels"] if name.startswith(start)) for start in ("gemv/h", "rmsn"))
    del document["kernels"][head]
    document["kernels"][norm]["source"] = "0" * 16
    file.write_text(json.dumps(document))
    asked = generate.parser().parse_args(["llama2-tiny", "--kernels", str(file)])
    found = candidates(again := plan_of(**vars(asked), argv=[]), again.job)
    assert {str(id) for id, some in found.pool.items() if len(some) > 1} == {head, norm}
    told = found.told("This one")
    assert f"{head}: not in it" in told and f"{norm}: torch.eager has another source now" in told
    assert told.endswith("here it is This one") and not found.told("Another").endswith("here it is Another")

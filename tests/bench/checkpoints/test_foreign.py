"""Whatever is given, weights come of it or one line of refusal; what was trained goes out in every format."""

import dataclasses
import random

import pytest
import torch

from bench.checkpoints import EXPORTS, foreign, hugging_face, llama2c, llmc, nanogpt
from bench.checkpoints.foreign import export, open_weights, read_any, weights_from
from bench.checkpoints.run import MARKER, WEIGHTS, save
from bench.checkpoints.state import describe, described, need_same_model
from bench.cli import CannotGoOn
from bench.text import scored
from bench.text.decoding import decoder_of, write_tokenizer
from bench.text.tokenizer import llama_bytes
from reference.models.llama2 import Llama2
from tests.bench.checkpoints import llamas
from tests.bench.checkpoints.states import MODEL, state


def with_padding_of_zeros(dtype: str):
    given = state(dtype=dtype, masters=dtype != "fp32")
    for named in (given.weights, given.m, given.v, given.masters):
        if named:
            named["wte"][MODEL.v :] = 0
    return given


@pytest.fixture
def run(tmp_path):
    """A run's folder with two checkpoints in fp32, the newer one torn."""
    folder = tmp_path / "run" / "checkpoints"
    save(folder, with_padding_of_zeros("fp32"))
    (save(folder, state(9, "fp32")) / MARKER).unlink()
    return folder.parent


@pytest.mark.parametrize("format", ["hf", "llmc", "llmc.bin", "nanogpt"])
def test_every_export_can_be_started_from(tmp_path, run, format):
    out = tmp_path / {"hf": "hf", "llmc": "llmc", "llmc.bin": "model.bin", "nanogpt": "nano.safetensors"}[format]
    told = export(run, format.partition(".")[0], out)
    assert told.startswith(f"{out}: made-up after 7 steps in fp32")
    wanted = with_padding_of_zeros("fp32").weights
    found = weights_from(out, MODEL)
    assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)
    with pytest.raises(CannotGoOn, match="it is there, and stays"):
        export(run, format.partition(".")[0], out)
    with pytest.raises(CannotGoOn, match="other") as refused:
        weights_from(out, dataclasses.replace(MODEL, name="other", C=32))
    assert str(out) in str(refused.value) and "\n" not in str(refused.value)


def test_llmcs_folder_has_the_runs_tokenizer(tmp_path, run):
    (run / "checkpoints" / "tokenizer.bin").write_bytes(b"tokens")
    export(run, "llmc", tmp_path / "llmc")
    assert (tmp_path / "llmc" / "gpt2_tokenizer.bin").read_bytes() == b"tokens"


@pytest.mark.parametrize("which", ["run", "run/checkpoints", "run/checkpoints/step-00000007"])
def test_a_run_or_a_checkpoint_of_it_is_taken(tmp_path, run, which):
    wanted = with_padding_of_zeros("fp32").weights
    found = weights_from(tmp_path / which, MODEL)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    model, read = read_any(tmp_path / which)
    assert model == MODEL and read.step == 7


def test_one_that_is_named_and_torn_is_not_replaced_by_another(run):
    with pytest.raises(CannotGoOn, match="no whole checkpoint"):
        weights_from(run / "checkpoints" / "step-00000009", MODEL)
    (run / "checkpoints" / "step-00000007" / MARKER).unlink()
    with pytest.raises(CannotGoOn, match="all checkpoints are torn"):
        weights_from(run, MODEL)


def test_masters_are_what_is_started_from(tmp_path):
    given = with_padding_of_zeros("bf16")
    path = save(tmp_path, given)
    assert given.masters
    assert torch.equal(weights_from(path, MODEL)["wpe"], given.masters["wpe"])
    assert torch.equal(weights_from(path / WEIGHTS, MODEL)["wpe"], given.weights["wpe"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ckpt.pt", b"PK\x03\x04", "a pickle, which is never read"),
        ("pytorch_model.bin", b"\x80\x02}q\x00.", "a pickle, which is never read"),
        ("text.bin", b"once upon a time", "weights of no known format"),
        ("empty.bin", b"", "weights of no known format"),
        ("w.safetensors", b"\xff" * 100, "not a safetensors file"),
        ("w.safetensors", b"", "not a safetensors file"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CannotGoOn, match=f"{name}: .*{says}"):
        weights_from(tmp_path / name, MODEL)


def test_a_folder_with_nothing_and_nothing_at_all_are_refused(tmp_path):
    with pytest.raises(CannotGoOn, match="no checkpoint is there"):
        weights_from(tmp_path, MODEL)
    with pytest.raises(CannotGoOn, match="no such file or folder"):
        weights_from(tmp_path / "gone", MODEL)


def test_a_format_is_refused_for_another_family(tmp_path, run, monkeypatch):
    monkeypatch.setattr(foreign, "described", lambda *_: type("Other", (), {"name": "o", "family": "f", "v": 9})())
    monkeypatch.setattr(foreign.run, "load", lambda *_: state())
    says = {
        "hf": "o is of the family f, which is not known there",
        "llmc": "--format llmc is a format for GPT-2, and o is of the family f",
        "nanogpt": "--format nanogpt is a format for GPT-2, and o is of the family f",
        "gguf": "--format gguf is a format for Llama 2, and o is of the family f",
        "llama2c": "--format llama2c is a format for Llama 2, and o is of the family f",
    }
    assert says.keys() == set(EXPORTS)
    for format, why in says.items():
        for out in (tmp_path / "out", tmp_path / "out.bin"):
            with pytest.raises(CannotGoOn, match=why):
                export(run, format, out)
            assert not out.exists()


def test_the_command_exports(tmp_path, run, ended):
    from bench import export as command

    assert ended(command, run, "--format", "hf", "--out", tmp_path / "hf") == (0, "")
    assert (tmp_path / "hf" / hugging_face.WEIGHTS).exists()
    code, said = ended(command, run, "--format", "nanogpt", "--out", tmp_path / "hf")
    assert code == 1 and "it is there, and stays" in said
    assert nanogpt.names(MODEL).keys() == MODEL.parameter_shapes().keys()
    assert sorted(n for names in llmc.order(MODEL) for n in names) == sorted(MODEL.parameter_shapes())


# --- Llama ---

LLAMA = llamas.UNTIED


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory):
    """A run's folder with a checkpoint of a Llama and its tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("llama") / "run" / "checkpoints"
    given = dataclasses.replace(state(7, "fp32", LLAMA), weights=llamas.weights(LLAMA), masters=None)
    save(folder, given)
    write_tokenizer(folder / "tokenizer.bin", decoder_of(llama_bytes()))
    return folder.parent


FORMS = {
    "hf": ("hf", 0),
    "m.bin": ("llama2c", 0),
    "folder": ("llama2c", 0),
    "v1.bin": ("llama2c", 1),
    "m.gguf": ("gguf", 0),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_export_of_a_llama_can_be_started_from_and_opened(tmp_path, llama_run, name):
    format, version = FORMS[name]
    out = tmp_path / name
    told = export(llama_run, format, out, version)
    assert told.startswith(f"{out}: made-up-untied after 7 steps in fp32")
    wanted = llamas.weights(LLAMA)
    assert llamas.equal(weights_from(out, LLAMA), wanted)
    model, weights, codec = open_weights(out)
    assert dataclasses.replace(model, name=LLAMA.name) == LLAMA and llamas.equal(weights, wanted)
    assert (codec is not None) == (name in ("folder", "hf", "m.gguf"))
    if codec:
        assert codec.begin == (1,) and codec.decode([1, *codec.encode("Aé")]) == "Aé" and codec.size == LLAMA.v
    # and from there into every other form
    for other, (format, version) in FORMS.items():
        told = export(out, format, tmp_path / f"again-{other}", version)
        assert told.startswith(f"{tmp_path / f'again-{other}'}: {model.name} in fp32")
    assert (tmp_path / "again-m.bin").read_bytes() == (tmp_path / "again-folder" / "model.bin").read_bytes()
    with pytest.raises(CannotGoOn, match="it is there, and stays"):
        export(llama_run, format, out, version)
    with pytest.raises(CannotGoOn, match="C") as refused:
        weights_from(out, dataclasses.replace(LLAMA, name="other", C=64))
    assert str(out) in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(CannotGoOn, match=r"GPT-2|family gpt2"):
        export(out, "nanogpt", tmp_path / "n.safetensors")
        weights_from(out, MODEL)


def test_int8_is_opened_and_fewer_positions_are_no_other_model(tmp_path, llama_run):
    told = export(llama_run, "llama2c", tmp_path / "q.bin", 2, 16)
    assert "version 2 with groups of 16" in told
    _, weights, _ = open_weights(tmp_path / "q.bin")
    shorter = dataclasses.replace(LLAMA, name="shorter", max_t=8)
    found = weights_from(tmp_path / "q.bin", shorter)
    assert llamas.equal(found, weights) and not llamas.equal(found, llamas.weights(LLAMA))
    with pytest.raises(CannotGoOn, match="it has 16 positions, longer 32"):
        weights_from(tmp_path / "q.bin", dataclasses.replace(LLAMA, name="longer", max_t=32))


def test_a_llama_run_is_opened_with_its_tokenizer(tmp_path, llama_run):
    model, weights, codec = open_weights(llama_run)
    assert model == LLAMA and llamas.equal(weights, llamas.weights(LLAMA))
    assert codec and codec.begin == (1,) and codec.end == 1 and codec.encode("a") == [ord("a") + 3]
    scored.write_tokenizer(tmp_path / "other.bin", scored.of_bytes(LLAMA.v))
    named = open_weights(llama_run, tmp_path / "other.bin")[2]
    assert isinstance(named, scored.Scored)
    with pytest.raises(CannotGoOn, match="259 tokens, and the model has 300"):
        scored.write_tokenizer(tmp_path / "small.bin", scored.of_bytes(259))
        open_weights(llama_run, tmp_path / "small.bin")


def test_gpt2_is_opened_whatever_it_is_in(tmp_path, run, monkeypatch):
    wanted = with_padding_of_zeros("fp32").weights
    paths = {"hf": tmp_path / "hf", "llmc": tmp_path / "m.bin", "nanogpt": tmp_path / "n.safetensors"}
    for format, out in paths.items():
        export(run, format, out)
        if format == "nanogpt":
            with pytest.raises(CannotGoOn, match="it does not say how many heads"):
                open_weights(out)
            monkeypatch.setitem(foreign.MODELS, MODEL.name, MODEL)
        model, weights, codec = open_weights(out)
        assert dataclasses.replace(model, name=MODEL.name) == MODEL and codec is None
        assert all(torch.equal(weights[n], wanted[n]) for n in wanted)
    assert open_weights(run)[0] == open_weights(run / "checkpoints" / "step-00000007" / WEIGHTS)[0] == MODEL


def test_a_model_of_128_channels_is_no_pickle(tmp_path):
    wide = dataclasses.replace(llamas.MODEL, C=128)
    llama2c.write_model(tmp_path / "m.bin", wide, llamas.weights(wide))
    assert (tmp_path / "m.bin").read_bytes()[:1] == b"\x80"
    assert open_weights(tmp_path / "m.bin")[1]["wte"].shape == (384, 128)


def test_whatever_is_damaged_one_line_tells(tmp_path, run, llama_run):
    """Bytes changed, cut or added anywhere near the beginning of any file: read all the same, or refused in a line."""
    out = tmp_path / "out"
    export(run, "hf", out / "gpt2")
    export(run, "llmc", out / "llmc.bin")
    for name, (format, version) in FORMS.items():
        export(llama_run, format, out / name, version)
    draw, refusals = random.Random(5), 0
    files = [f for f in sorted(out.rglob("*")) if f.is_file()]
    assert len(files) == 12
    for file in files:
        whole = file.read_bytes()
        for _ in range(12):
            damaged, at = bytearray(whole), draw.randrange(min(len(whole), 400))
            kind = draw.choice(("change", "cut", "add"))
            damaged[at : at + 4] = {"change": draw.randbytes(4), "cut": b"", "add": draw.randbytes(9)}[kind]
            file.write_bytes(damaged[:at] if kind == "cut" and at % 2 else damaged)
            target = file.parent if file.parent.name in ("hf", "gpt2") else file
            for opened in (lambda t=target: open_weights(t), lambda t=target: weights_from(t, LLAMA)):
                try:
                    opened()
                except CannotGoOn as error:
                    refusals += 1
                    assert "\n" not in str(error) and str(tmp_path) in str(error), str(error)
        file.write_bytes(whole)
    assert refusals > 150


def test_the_command_writes_llama2cs_versions(tmp_path, llama_run, ended):
    from bench import export as command

    more = ("--format", "llama2c", "--version", 2, "--group", 8)
    assert ended(command, llama_run, *more, "--out", tmp_path / "m.bin") == (0, "")
    assert llama2c.head_of(tmp_path / "m.bin").group == 8
    assert ended(command, llama_run, "--format", "hf", "--version", 1, "--out", tmp_path / "hf")[0] == 64
    assert ended(command, llama_run, *more[:2], "--group", 8, "--out", tmp_path / "n.bin")[0] == 64
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]


def test_what_was_described_before_a_family_had_all_its_fields_is_the_same_model():
    """Checkpoints that say no epsilon of their norms are of the one that all had."""
    old = {key: value for key, value in describe(llamas.MODEL).items() if key != "eps"}
    assert described(old, "run") == llamas.MODEL
    need_same_model(old, llamas.MODEL, "run")
    other = dataclasses.replace(llamas.MODEL, eps=1e-6)
    assert described(describe(other), "run") == other
    for found, wanted in ((old, other), (describe(other), llamas.MODEL)):
        with pytest.raises(CannotGoOn, match=r"eps 1e-0[56], not 1e-0[56]"):
            need_same_model(found, wanted, "run")


@pytest.mark.parametrize("format", ["hf", "llama2c", "gguf"])
def test_a_family_that_is_derived_from_llama_is_not_written_as_one(tmp_path, monkeypatch, format):
    """It has Llama's parameters, and may compute something else with them, which no file would say."""

    class Windowed(Llama2):
        family = "windowed"

    derived = Windowed(**{f.name: getattr(LLAMA, f.name) for f in dataclasses.fields(LLAMA)})
    given = dataclasses.replace(state(7, "fp32", LLAMA), weights=llamas.weights(LLAMA), masters=None)
    monkeypatch.setattr(foreign, "_to_export", lambda path: (derived, given, path))
    with pytest.raises(CannotGoOn, match="of the family windowed"):
        export(tmp_path, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("format", "last"), [("hf", (hugging_face, "_write_tensors")), ("llama2c", (scored, "write_tokenizer"))]
)
def test_a_folder_that_is_exported_is_whole_or_not_there(tmp_path, llama_run, monkeypatch, format, last):
    """Else the same command would be refused once there is room."""
    with monkeypatch.context() as full:
        full.setattr(*last, lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(CannotGoOn):
            export(llama_run, format, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    export(llama_run, format, tmp_path / "out")


def test_so_is_llm_cs(tmp_path, run, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(llmc, "write_state", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(CannotGoOn):
            export(run, "llmc", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    export(run, "llmc", tmp_path / "out")

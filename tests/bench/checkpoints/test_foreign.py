"""Whatever is given, weights come of it or one line of refusal; what was trained goes out in every format."""

import dataclasses

import pytest
import torch

from bench.checkpoints import foreign, hugging_face, llmc, nanogpt
from bench.checkpoints.foreign import export, read_any, weights_from
from bench.checkpoints.run import MARKER, WEIGHTS, save
from bench.cli import CannotGoOn
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


def test_a_format_for_gpt2_is_refused_for_another_family(tmp_path, run, monkeypatch):
    monkeypatch.setattr(foreign, "described", lambda *_: type("Other", (), {"name": "o", "family": "f"})())
    monkeypatch.setattr(foreign.run, "load", lambda *_: state())
    with pytest.raises(CannotGoOn, match="--format hf is a format for GPT-2, and o is of the family f"):
        export(run, "hf", tmp_path / "hf")


def test_the_command_exports(tmp_path, run, ended):
    from bench import export as command

    assert ended(command, run, "--format", "hf", "--out", tmp_path / "hf") == (0, "")
    assert (tmp_path / "hf" / hugging_face.WEIGHTS).exists()
    code, said = ended(command, run, "--format", "nanogpt", "--out", tmp_path / "hf")
    assert code == 1 and "it is there, and stays" in said
    assert nanogpt.names(MODEL).keys() == MODEL.parameter_shapes().keys()
    assert sorted(n for names in llmc.order(MODEL) for n in names) == sorted(MODEL.parameter_shapes())

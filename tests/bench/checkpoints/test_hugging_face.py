"""Folders that Hugging Face's GPT-2 loads, and folders of its making; nanoGPT's names."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench.checkpoints import hugging_face, nanogpt
from bench.checkpoints.hugging_face import CONFIG, INDEX, WEIGHTS, read_folder, write_folder
from bench.checkpoints.tensors import read
from bench.cli import CannotGoOn
from bench.core.case import DTYPES
from reference.models.gpt2 import Network, init_parameters
from tests.bench.checkpoints.states import MODEL


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random everywhere but in wte's padding, so that no two tensors can be exchanged."""
    generator = torch.Generator().manual_seed(4)
    drawn = {n: p + 0.3 * torch.randn(p.shape, generator=generator) for n, p in init_parameters(MODEL, 0).items()}
    drawn["wte"][MODEL.v :] = 0
    return {n: p.to(dtype) for n, p in drawn.items()}


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[n], wanted[n].float()) for n in wanted)


# --- with transformers ---


@pytest.fixture(scope="module")
def gpt2lmheadmodel():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from transformers import GPT2LMHeadModel

        yield GPT2LMHeadModel


@pytest.mark.slow  # transformers takes seconds to import
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_from_pretrained_loads_what_is_written_with_equal_logits(tmp_path, gpt2lmheadmodel, dtype):
    given = weights(DTYPES[dtype])
    folder = write_folder(tmp_path / "hf", given, MODEL)
    theirs, loading = gpt2lmheadmodel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert theirs.transformer.wte.weight.shape == (MODEL.v, MODEL.C)
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    assert theirs.dtype == DTYPES[dtype]
    found = nanogpt.convert(theirs.state_dict(), MODEL, "their model")
    assert equal(found, given)
    if dtype == "fp32":
        tokens = torch.randint(0, MODEL.v, (2, MODEL.max_t), generator=torch.Generator().manual_seed(1))
        ours = Network(MODEL)
        ours.load(given)
        with torch.no_grad():
            difference = theirs.eval()(tokens).logits - ours(tokens)[..., : MODEL.v]
        assert difference.abs().max() <= 1e-5  # another order of sums: the two compute differently
        again = gpt2lmheadmodel(theirs.config).eval()
        again.load_state_dict(
            {**nanogpt.named(found, MODEL, transpose=True), "lm_head.weight": found["wte"][: MODEL.v]}
        )
        with torch.no_grad():
            assert torch.equal(theirs(tokens).logits, again(tokens).logits)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_what_save_pretrained_writes_is_read(tmp_path, gpt2lmheadmodel, shards):
    given = weights()
    theirs = gpt2lmheadmodel.from_pretrained(write_folder(tmp_path / "ours", given, MODEL))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if shards else "5GB")
    assert (tmp_path / "theirs" / INDEX).exists() == shards
    model, found = read_folder(tmp_path / "theirs")
    assert equal(found, given) and (model.L, model.NH, model.C, model.v) == (MODEL.L, MODEL.NH, MODEL.C, MODEL.v)


# --- without ---


def folder_of(path: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    path.mkdir()
    said = {**hugging_face.config_of(MODEL, "float32"), **config}
    (path / CONFIG).write_text(json.dumps(said))
    safetensors.torch.save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path / WEIGHTS)
    return path


def theirs() -> dict[str, torch.Tensor]:
    return nanogpt.named(weights(), MODEL, transpose=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_folder_comes_back(tmp_path, dtype):
    given = weights(DTYPES[dtype])
    model, found = read_folder(write_folder(tmp_path / "hf", given, MODEL), MODEL)
    assert model is MODEL and equal(found, given)
    file = safetensors.torch.load_file(tmp_path / "hf" / WEIGHTS)
    assert "lm_head.weight" not in file and len(file) == 12 * MODEL.L + 4
    assert file["transformer.h.0.attn.c_attn.weight"].shape == (MODEL.C, 3 * MODEL.C)


def test_the_names_and_buffers_of_older_files_are_read(tmp_path):
    old = {name.removeprefix("transformer."): t for name, t in theirs().items()}
    for i in range(MODEL.L):
        old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8), f"h.{i}.attn.masked_bias": torch.tensor(-1e4)}
    old["lm_head.weight"] = old["wte.weight"]
    assert equal(read_folder(folder_of(tmp_path / "old", old))[1], weights())


def test_a_padded_vocabulary_is_cut(tmp_path):
    padded = theirs()
    padded["transformer.wte.weight"] = torch.cat([padded["transformer.wte.weight"], torch.ones(56, MODEL.C)])
    folder = folder_of(tmp_path / "hf", padded, vocab_size=MODEL.vp)
    assert equal(read_folder(folder, MODEL)[1], weights())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_inner": 100}, "n_inner is 100"),
        ({"n_head": 4}, "its NH is 4, made-up's 2"),
        ({"n_layer": "many"}, "no sizes of a GPT-2"),
        ({"n_layer": float("inf")}, "no sizes of a GPT-2"),
        ({"n_head": 0}, "no sizes of a GPT-2"),
    ],
)
def test_what_computes_otherwise_is_refused(tmp_path, config, says):
    with pytest.raises(CannotGoOn, match=says):
        read_folder(folder_of(tmp_path / "hf", theirs(), **config), MODEL)


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("transformer.h.1.mlp.c_fc.weight", None, "h.1.mlp.c_fc.weight is missing"),
        ("transformer.h.1.mlp.c_fc.weight", torch.zeros(16, 63), r"h.1.mlp.c_fc.weight is \(63, 16\)"),
        ("transformer.h.2.ln_1.weight", torch.zeros(16), "h.2.ln_1.weight is none of"),
        ("transformer.h.1.mlp.c_fc.weight", torch.zeros(16, 64, dtype=torch.int8), "quantized weights are not read"),
        ("lm_head.weight", torch.zeros(200, 16), "not tied"),
        ("transformer.wte.weight", torch.zeros(199, 16), "a vocabulary of 199, made-up has 200"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(tmp_path, name, tensor, says):
    tensors = theirs()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(CannotGoOn, match=says):
        read_folder(folder_of(tmp_path / "hf", tensors), MODEL)


def test_a_configuration_that_promises_too_many_layers_is_refused_before_they_are_listed(tmp_path):
    with pytest.raises(CannotGoOn, match="too few for 2000000000 layers"):
        read_folder(folder_of(tmp_path / "hf", theirs(), n_layer=2_000_000_000))


def test_a_pickle_is_never_read(tmp_path):
    folder = folder_of(tmp_path / "hf", theirs())
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CannotGoOn, match=r"pytorch_model\.bin is a pickle, which is never read"):
        read_folder(folder)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "gone.safetensors", 7])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, place):
    folder = folder_of(tmp_path / "hf", theirs())
    (folder / WEIGHTS).rename(folder / "model-00001.safetensors")
    (tmp_path / "secret.safetensors").write_bytes((folder / "model-00001.safetensors").read_bytes())
    index = {"weight_map": {**dict.fromkeys(theirs(), "model-00001.safetensors")}}
    (folder / INDEX).write_text(json.dumps(index))
    assert equal(read_folder(folder)[1], weights())
    index["weight_map"]["transformer.wte.weight"] = place
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CannotGoOn, match=r"no map of tensors|no such file"):
        read_folder(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000], ids=["empty", "half", "list", "text", "deep"]
)
def test_a_damaged_configuration_or_file_is_refused(tmp_path, content):
    folder = folder_of(tmp_path / "hf", theirs())
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CannotGoOn, match="not a safetensors file"):
        read_folder(folder)
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(CannotGoOn, match=r"config\.json: (cannot be read|not what)"):
        read_folder(folder)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(CannotGoOn, match="it is there, and stays"):
        write_folder(tmp_path / "mine", weights(), MODEL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


# --- nanoGPT ---


def test_nanogpts_file_is_read_and_written(tmp_path):
    given = weights()
    nanogpt.write_file(tmp_path / "nano.safetensors", given, MODEL)
    file = safetensors.torch.load_file(tmp_path / "nano.safetensors")
    assert torch.equal(file["transformer.h.1.attn.c_attn.weight"], given["h1.qkv.weight"])
    assert torch.equal(file["lm_head.weight"], given["wte"][: MODEL.v])
    assert equal(nanogpt.convert(read(tmp_path / "nano.safetensors"), MODEL, ""), given)
    compiled = {f"_orig_mod.{name}": t for name, t in file.items()}
    safetensors.torch.save_file({n: t.clone() for n, t in compiled.items()}, tmp_path / "compiled.safetensors")
    assert equal(nanogpt.convert(read(tmp_path / "compiled.safetensors"), MODEL, ""), given)


def test_without_biases_they_are_zero():
    given = {n: torch.zeros_like(p) if n.endswith("bias") else p for n, p in weights().items()}
    tensors = {n: t for n, t in nanogpt.named(given, MODEL, transpose=False).items() if not n.endswith("bias")}
    assert equal(nanogpt.convert(tensors, MODEL, "a file"), given)
    one_left = {**tensors, "transformer.h.0.attn.c_attn.bias": torch.ones(3 * MODEL.C)}
    with pytest.raises(CannotGoOn, match="bias is missing"):
        nanogpt.convert(one_left, MODEL, "a file")


def test_another_size_is_refused():
    wider = dataclasses.replace(MODEL, name="wider", C=32)
    with pytest.raises(CannotGoOn, match=r"wte.weight is \(256, 16\), wider's is \(256, 32\)"):
        nanogpt.convert(nanogpt.named(weights(), MODEL, transpose=False), wider, "a file")

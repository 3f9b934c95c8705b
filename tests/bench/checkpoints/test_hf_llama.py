"""Folders that Hugging Face's Llama loads, and folders of its making."""

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench.checkpoints import hf_llama
from bench.checkpoints.hugging_face import CONFIG, INDEX, WEIGHTS, read_folder, write_folder
from bench.cli import CannotGoOn
from bench.core.case import DTYPES
from reference.models.llama2 import SIZES, Network
from tests.bench.checkpoints.llamas import MODEL, UNTIED, equal, their_config, weights
from tests.bench.checkpoints.states import MODEL as GPT2
from tests.bench.checkpoints.states import state

BOTH = pytest.mark.parametrize("model", [MODEL, UNTIED], ids=["tied", "untied"])

# --- with transformers ---


@pytest.fixture(scope="module")
def llamaforcausallm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from transformers import LlamaForCausalLM

        yield LlamaForCausalLM


def same_logits(theirs, model, given) -> None:
    tokens = torch.randint(0, model.v, (2, model.max_t), generator=torch.Generator().manual_seed(1))
    ours = Network(model)
    ours.load(given)
    with torch.no_grad():
        found = theirs.eval()(tokens).logits
        difference = (found - ours(tokens)[..., : model.v]).abs().max()
    assert difference <= 1e-5 * found.abs().max()  # another order of sums: the two compute differently


@pytest.mark.slow  # transformers takes seconds to import
@BOTH
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_from_pretrained_loads_what_is_written_with_equal_logits(tmp_path, llamaforcausallm, model, dtype):
    model = dataclasses.replace(model, theta=5000.0, eps=1e-3)
    given = weights(model, DTYPES[dtype])
    folder = write_folder(tmp_path / "hf", given, model)
    theirs, loading = llamaforcausallm.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert theirs.model.embed_tokens.weight.shape == (model.v, model.C)
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == model.tied
    assert theirs.dtype == DTYPES[dtype]
    assert equal(hf_llama.convert(theirs.state_dict(), model, "their model"), given)
    if dtype == "fp32":
        same_logits(theirs, model, given)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("shards", [False, True])
def test_what_save_pretrained_writes_is_read_with_equal_logits(tmp_path, llamaforcausallm, model, shards):
    model = dataclasses.replace(model, eps=1e-3)  # so that logits show it
    torch.manual_seed(3)
    theirs = llamaforcausallm(their_config(model, initializer_range=0.3))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if shards else "5GB")
    assert (tmp_path / "theirs" / INDEX).exists() == shards
    found, read = read_folder(tmp_path / "theirs")
    assert found == dataclasses.replace(model, name=found.name)
    same_logits(theirs, found, read)


# --- without ---


def folder_of(path: Path, tensors: dict[str, torch.Tensor], model=MODEL, **config) -> Path:
    path.mkdir()
    said = {**hf_llama.config_of(model, "float32"), **config}
    (path / CONFIG).write_text(json.dumps(said))
    safetensors.torch.save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path / WEIGHTS)
    return path


def theirs(model=MODEL) -> dict[str, torch.Tensor]:
    return hf_llama.named(weights(model), model)


@BOTH
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_folder_comes_back(tmp_path, model, dtype):
    given = weights(model, DTYPES[dtype])
    found, read = read_folder(write_folder(tmp_path / "hf", given, model), model)
    assert found is model and equal(read, given)
    assert read_folder(tmp_path / "hf")[0] == dataclasses.replace(model, name=f"llama2-2x{model.C}")
    file = safetensors.torch.load_file(tmp_path / "hf" / WEIGHTS)
    assert ("lm_head.weight" in file) != model.tied and len(file) == 9 * model.L + 2 + (not model.tied)
    assert {t.dtype for t in file.values()} == {DTYPES[dtype]}


def test_queries_and_keys_of_neighbours_become_halves(tmp_path):
    """Row 2i + j of a head is row i + j HS/2 there; values and all else stay as they are."""
    given = weights(MODEL)
    file = theirs()
    qkv, C, HS = given["h1.qkv.weight"], MODEL.C, MODEL.head_size
    for head in range(MODEL.NH):
        for i in range(HS // 2):
            for j in range(2):
                there = file["model.layers.1.self_attn.q_proj.weight"][head * HS + i + j * HS // 2]
                assert torch.equal(there, qkv[head * HS + 2 * i + j])
    assert torch.equal(file["model.layers.1.self_attn.k_proj.weight"][1], qkv[C + 2])
    assert torch.equal(file["model.layers.1.self_attn.v_proj.weight"], qkv[C + MODEL.NKV * HS :])
    assert torch.equal(file["model.layers.0.mlp.up_proj.weight"], given["h0.gate_up.weight"][MODEL.H :])


@pytest.mark.parametrize("model", [UNTIED, GPT2], ids=["llama", "gpt2"])
def test_shards_are_written_under_an_index_and_read(tmp_path, model):
    given = dict(state(dtype="fp32").weights) if model is GPT2 else weights(model)
    given["wte"][model.v :] = 0
    folder = write_folder(tmp_path / "hf", given, model, shard_bytes=20_000)
    place = json.loads((folder / INDEX).read_bytes())["weight_map"]
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert {f.name for f in files} == set(place.values()) and not (folder / WEIGHTS).exists()
    for file in files:
        tensors = safetensors.torch.load_file(file)
        assert {n for n, f in place.items() if f == file.name} == tensors.keys()
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
    assert equal(read_folder(folder, model)[1], given)
    files[1].unlink()
    with pytest.raises(CannotGoOn, match="no such file"):
        read_folder(folder)


def test_configurations_of_either_age_and_known_sizes_are_read(tmp_path):
    old = {"rope_parameters": None, "rope_theta": 500000.0, "rope_scaling": None, "pretraining_tp": 1, "head_dim": None}
    assert read_folder(folder_of(tmp_path / "old", theirs(), **old))[0].theta == 500000
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": None}
    assert read_folder(folder_of(tmp_path / "new", theirs(), **new))[0].theta == 7
    assert read_folder(folder_of(tmp_path / "eps", theirs(), rms_norm_eps=1e-6))[0].eps == 1e-6  # the first Llama's
    largest = SIZES[-1]
    said = hf_llama.config_of(largest, "bfloat16")
    assert hf_llama.model_of(said, tmp_path) is largest and largest.name == "llama2-7b"
    del said["num_key_value_heads"], said["tie_word_embeddings"], said["rope_parameters"], said["rope_theta"]
    assert hf_llama.model_of(said, tmp_path) is largest
    del said["rms_norm_eps"]
    assert hf_llama.model_of(said, tmp_path) == dataclasses.replace(largest, name="llama2-32x4096", eps=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', and this program knows gpt2 and llama"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2', and made-up-llama is of the family llama2"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": 1e-6}, "its eps is 1e-06, made-up-llama's 1e-05"),
        ({"rms_norm_eps": None}, "no sizes of a Llama"),
        ({"rms_norm_eps": 0}, "no sizes of a Llama"),
        ({"rms_norm_eps": "nan"}, "no sizes of a Llama"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters is"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters is"),
        ({"rope_parameters": [1]}, "rope_parameters is"),
        ({"rope_parameters": {"rope_theta": "many"}}, "no sizes of a Llama"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "no sizes of a Llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is"),
        ({"head_dim": 4}, "head_dim is 4"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"tie_word_embeddings": False}, "its tied is False, made-up-llama's True"),
        ({"num_attention_heads": 5}, "no Llama has these sizes"),
        ({"num_key_value_heads": 0}, "no Llama has these sizes"),
        ({"num_key_value_heads": 4}, "its NKV is 4, made-up-llama's 2"),
        ({"num_hidden_layers": "many"}, "no sizes of a Llama"),
        ({"hidden_size": float("inf")}, "no sizes of a Llama"),
        ({"max_position_embeddings": 10**18}, "no Llama has these sizes"),
        ({"num_hidden_layers": 2_000_000_000}, "its L is 2000000000"),
        ({"max_position_embeddings": 8}, "it has 8 positions, made-up-llama 16"),
        ({"vocab_size": 301}, "a vocabulary of 301, made-up-llama has 300"),
    ],
)
def test_what_computes_otherwise_is_refused(tmp_path, config, says):
    with pytest.raises(CannotGoOn, match=says) as error:
        read_folder(folder_of(tmp_path / "hf", theirs(), **config), MODEL)
    assert "\n" not in str(error.value)


def test_more_positions_or_a_padded_vocabulary_are_no_other_model(tmp_path):
    padded = theirs(UNTIED)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        padded[name] = torch.cat([padded[name], torch.ones(84, UNTIED.C)])
    folder = folder_of(tmp_path / "hf", padded, UNTIED, vocab_size=384, max_position_embeddings=4096)
    found, read = read_folder(folder, UNTIED)
    assert found is UNTIED and equal(read, weights(UNTIED))


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "layers.1.mlp.up_proj.weight is missing"),
        ("model.layers.1.self_attn.k_proj.weight", torch.zeros(32, 32), r"k_proj.weight is \(32, 32\).*\(16, 32\)"),
        ("model.layers.1.self_attn.q_proj.bias", torch.zeros(32), "layers.1.self_attn.q_proj.bias is none of"),
        ("model.layers.2.input_layernorm.weight", torch.zeros(32), "layers.2.input_layernorm.weight is none of"),
        ("model.norm.weight", torch.zeros(32, dtype=torch.int8), "quantized weights are not read"),
        ("model.norm.weight", torch.tensor(1.0), r"norm.weight is \(\)"),
        ("model.embed_tokens.weight", torch.zeros(299, 32), r"embed_tokens.weight is \(299, 32\)"),
        ("model.embed_tokens.weight", torch.tensor(1.0), r"embed_tokens.weight is \(\)"),
        ("lm_head.weight", torch.zeros(300, 32), "not tied"),
        ("lm_head.weight", torch.tensor(1.0), "not tied"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(tmp_path, name, tensor, says):
    tensors = theirs()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(CannotGoOn, match=says):
        read_folder(folder_of(tmp_path / "hf", tensors), MODEL)


def test_names_and_buffers_of_other_versions_are_read(tmp_path):
    old = {name.removeprefix("model."): t for name, t in theirs().items()}
    old |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    old["lm_head.weight"] = old["embed_tokens.weight"]
    assert equal(read_folder(folder_of(tmp_path / "old", old))[1], weights(MODEL))
    headless = theirs(UNTIED)
    del headless["lm_head.weight"]
    with pytest.raises(CannotGoOn, match=r"lm_head\.weight is missing"):
        read_folder(folder_of(tmp_path / "headless", headless, UNTIED))


def test_too_many_layers_are_refused_before_they_are_listed(tmp_path):
    with pytest.raises(CannotGoOn, match="too few for 2000000000 layers"):
        read_folder(folder_of(tmp_path / "hf", theirs(), num_hidden_layers=2_000_000_000))

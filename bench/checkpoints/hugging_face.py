"""A Hugging Face folder of GPT-2 or Llama 2: config.json and model.safetensors, or shards of it under an index.

Source: transformers, models/gpt2 (GPT2Config, GPT2LMHeadModel). Its Conv1D keeps matrices (in, out), ours are (out,
in); the head is tied to wte and not in the file; the vocabulary has no padding. What is Llama's own stands in
hf_llama.py. pytorch_model.bin is a pickle, which is never read.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.checkpoints import hf_llama, nanogpt
from bench.checkpoints.state import sized
from bench.checkpoints.tensors import new_file, new_folder, read, save_to
from bench.cli import CannotGoOn, no_such
from reference.models.gpt2 import EPS, GPT2, VOCAB
from reference.models.llama2 import Llama2
from reference.models.model import Model

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 10_000_000_000  # of a file of tensors, at most
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# What would compute something else than ours does; None: not said.
MUST_BE: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
    "layer_norm_epsilon": (EPS, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "add_cross_attention": (False, None),
    "tie_word_embeddings": (True, None),
}
SIZES = {"n_positions": "max_t", "n_layer": "L", "n_head": "NH", "n_embd": "C"}


@dataclass(frozen=True)
class Kind:
    """How a family is written there.

    model_of: of a config.json; need_same: whether weights of one model are another's; config_of: config.json in a
    dtype; convert, named: tensors to ours and back.
    """

    family: type[Model]
    loader: str  # the class of transformers that reads it
    model_of: Callable[[Mapping[str, Any], Path], Any]
    need_same: Callable[[Any, Any, object], None]
    config_of: Callable[[Any, str], dict[str, Any]]
    convert: Callable[[Mapping[str, torch.Tensor], Any, object], dict[str, torch.Tensor]]
    named: Callable[[Mapping[str, torch.Tensor], Any], dict[str, torch.Tensor]]


# --- GPT-2 ---


def gpt2_of(config: Mapping[str, Any], where: Path) -> GPT2:
    """The model of a config.json. CannotGoOn for one that computes otherwise, or says no sizes."""
    for key, allowed in MUST_BE.items():
        if config.get(key) not in allowed:
            raise CannotGoOn(f"{where}: {key} is {config.get(key)!r}, and the GPT-2 here has {allowed[0]!r}")
    try:
        sizes = {ours: int(config[theirs]) for theirs, ours in SIZES.items()}
        v = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CannotGoOn(f"{where}: no sizes of a GPT-2 ({error})") from None
    if min(v, *sizes.values()) < 1 or sizes["C"] % sizes["NH"]:
        raise CannotGoOn(f"{where}: no sizes of a GPT-2 ({', '.join(f'{n} {s}' for n, s in sizes.items())})")
    if config.get("n_inner") not in (None, 4 * sizes["C"]):
        raise CannotGoOn(f"{where}: n_inner is {config['n_inner']}, and the GPT-2 here has 4 x n_embd")
    return sized(**sizes, v=v)


def _need_same_gpt2(found: GPT2, model: GPT2, where: object) -> None:
    for ours in SIZES.values():  # the vocabulary may be padded: `nanogpt.convert` looks at it
        if getattr(found, ours) != getattr(model, ours):
            raise CannotGoOn(f"{where}: its {ours} is {getattr(found, ours)}, {model.name}'s {getattr(model, ours)}")


def config_of(model: GPT2, dtype: str) -> dict[str, Any]:
    """config.json of a model whose weights are in `dtype`, as "bfloat16"."""
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.v,
        **{theirs: getattr(model, ours) for theirs, ours in SIZES.items()},
        "activation_function": "gelu_new",
        "layer_norm_epsilon": EPS,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": dtype,
    }
    if model.v == VOCAB:
        config |= {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1}
    return config


KINDS = {
    "gpt2": Kind(
        GPT2,
        "GPT2LMHeadModel",
        gpt2_of,
        _need_same_gpt2,
        config_of,
        nanogpt.convert,
        lambda weights, model: nanogpt.named(weights, model, transpose=True),
    ),
    "llama": Kind(
        Llama2,
        "LlamaForCausalLM",
        hf_llama.model_of,
        hf_llama.need_same,
        hf_llama.config_of,
        hf_llama.convert,
        hf_llama.named,
    ),
}


def kind_of(model: Model) -> Kind:
    """CannotGoOn for a family that is not written there."""
    for kind in KINDS.values():
        if type(model) is kind.family:  # what is derived from it computes something else
            return kind
    raise CannotGoOn(f"Hugging Face's folder: {model.name} is of the family {model.family}, which is not known there")


# --- folders ---


def read_folder(folder: Path, model: Model | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """(model, fp32 weights by our names). With `model`, CannotGoOn where the sizes are others; a padded vocabulary
    (50304) may be that of `model`.

    CannotGoOn, in one line, for what is no such folder, whole, or computes otherwise.
    """
    config = _json(folder / CONFIG)
    said = config.get("model_type")
    kind = KINDS.get(said) if isinstance(said, str) else None
    if kind is None:
        raise CannotGoOn(f"{folder / CONFIG}: model_type is {said!r}, and this program knows {' and '.join(KINDS)}")
    if model and type(model) is not kind.family:
        raise CannotGoOn(f"{folder / CONFIG}: model_type is {said!r}, and {model.name} is of the family {model.family}")
    found = kind.model_of(config, folder / CONFIG)
    if model:
        kind.need_same(found, model, folder)
    return model or found, kind.convert(_tensors(folder), model or found, folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CannotGoOn(no_such(path, "file")) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CannotGoOn(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise CannotGoOn(f"{path}: not what Hugging Face writes")
    return found


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WEIGHTS).exists():
        return read(folder / WEIGHTS)
    if (folder / INDEX).exists():
        place = _json(folder / INDEX).get("weight_map")
        if not isinstance(place, dict) or not all(isinstance(f, str) and f == Path(f).name for f in place.values()):
            raise CannotGoOn(f"{folder / INDEX}: no map of tensors to files beside it")
        found: dict[str, torch.Tensor] = {}
        for file in sorted(set(place.values())):
            found |= read(folder / file)
        if missing := place.keys() - found.keys():
            raise CannotGoOn(f"{folder}: {min(missing)} is in none of the files of {INDEX}")
        return {name: found[name] for name in place}
    pickle = " (pytorch_model.bin is a pickle, which is never read)" if (folder / "pytorch_model.bin").exists() else ""
    raise CannotGoOn(f"{folder}: neither {WEIGHTS} nor {INDEX}{pickle}")


def write_folder(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    model: Model,
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a folder for transformers' from_pretrained, in the weights' dtype, whole or not at all; tensors of more
    than `shard_bytes` in several files under an index. beside: more files, by name, as a tokenizer's.

    CannotGoOn where the folder is there, cannot be written, or the family is not known there.
    """
    kind = kind_of(model)
    config = kind.config_of(model, DTYPES[weights["wte"].dtype])
    with new_folder(folder) as temporary:
        for name, content in {CONFIG: _said(config), **(beside or {})}.items():
            with new_file(temporary / name) as file:
                file.write(content)
        _write_tensors(temporary, kind.named(weights, model), shard_bytes)
    return folder


def _said(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _write_tensors(folder: Path, tensors: dict[str, torch.Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes + sum(t.nbytes for t in shards[-1].values()) > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    one = len(shards) == 1
    names = [WEIGHTS if one else f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        with new_file(folder / name) as file:
            save_to(file, shard, {"format": "pt"})
    if not one:
        total = sum(t.nbytes for t in tensors.values())
        place = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        with new_file(folder / INDEX) as file:
            file.write(_said({"metadata": {"total_size": total}, "weight_map": place}))

"""A Hugging Face folder of GPT-2: config.json and model.safetensors, or shards of it under an index.

Source: transformers, models/gpt2 (GPT2Config, GPT2LMHeadModel). Its Conv1D keeps matrices (in, out), ours are (out,
in); the head is tied to wte and not in the file; the vocabulary has no padding. pytorch_model.bin is a pickle, which is
never read.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.checkpoints.nanogpt import convert, named
from bench.checkpoints.state import sized
from bench.checkpoints.tensors import new_file, read, save_to
from bench.cli import CannotGoOn
from bench.core.files import cannot_write
from reference.models.gpt2 import EPS, GPT2, VOCAB

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# What would compute something else than ours does; None: not said.
MUST_BE: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
    "layer_norm_epsilon": (EPS, None),
    "scale_attn_weights": (True, None),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "add_cross_attention": (False, None),
    "tie_word_embeddings": (True, None),
}
SIZES = {"n_positions": "max_t", "n_layer": "L", "n_head": "NH", "n_embd": "C"}


def read_folder(folder: Path, model: GPT2 | None = None) -> tuple[GPT2, dict[str, torch.Tensor]]:
    """(model, fp32 weights by our names). With `model`, CannotGoOn where the sizes are others; a padded vocabulary
    (50304) may be that of `model`.

    CannotGoOn, in one line, for what is no such folder, whole, or computes otherwise.
    """
    config = _json(folder / CONFIG)
    for key, allowed in MUST_BE.items():
        if config.get(key) not in allowed:
            raise CannotGoOn(f"{folder / CONFIG}: {key} is {config.get(key)!r}, and the GPT-2 here has {allowed[0]!r}")
    try:
        sizes = {ours: int(config[theirs]) for theirs, ours in SIZES.items()}
        v = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise CannotGoOn(f"{folder / CONFIG}: no sizes of a GPT-2 ({error})") from None
    if config.get("n_inner") not in (None, 4 * sizes["C"]):
        raise CannotGoOn(f"{folder / CONFIG}: n_inner is {config['n_inner']}, and the GPT-2 here has 4 x n_embd")
    if model is None:
        model = sized(**sizes, v=v)
    for ours, size in sizes.items():
        if getattr(model, ours) != size:
            raise CannotGoOn(f"{folder}: its {ours} is {size}, {model.name}'s {getattr(model, ours)}")
    return model, convert(_tensors(folder), model, folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CannotGoOn(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
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


def write_folder(folder: Path, weights: Mapping[str, torch.Tensor], model: GPT2) -> Path:
    """Write a folder for GPT2LMHeadModel.from_pretrained, in the weights' dtype, whole or not at all.

    CannotGoOn where the folder is there, or cannot be written.
    """
    if folder.exists():
        raise CannotGoOn(f"{folder}: it is there, and stays; take another name")
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with new_file(temporary / CONFIG) as file:
            file.write((json.dumps(config_of(model, weights["wte"].dtype), indent=2) + "\n").encode())
        with new_file(temporary / WEIGHTS) as file:
            save_to(file, named(weights, model, transpose=True), {"format": "pt"})
        temporary.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def config_of(model: GPT2, dtype: torch.dtype) -> dict[str, Any]:
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
        "torch_dtype": DTYPES[dtype],
    }
    if model.v == VOCAB:
        config |= {"bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1}
    return config

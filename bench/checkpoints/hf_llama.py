"""Llama 2 as Hugging Face has it: its configuration, its names, and queries and keys for its rotation.

Source: transformers, models/llama (LlamaConfig, LlamaForCausalLM). It turns channel i of a head together with i + HS/2,
ours are neighbours (2i, 2i + 1): rows of q_proj and k_proj are in that order. Its q, k and v are three matrices, gate
and up two; the vocabulary has no padding.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.checkpoints.state import named_model
from bench.cli import CannotGoOn
from reference.models.llama2 import INIT_STD, Llama2

MOST = 1 << 24  # positions, and tokens: a damaged number is more
THETA, NORM_EPS = 10000.0, 1e-6  # where a configuration does not say
# What would compute something else than ours does; None: not said.
MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "sliding_window": (None,),
}
SIZES = {
    "num_hidden_layers": "L",
    "num_attention_heads": "NH",
    "hidden_size": "C",
    "intermediate_size": "H",
    "max_position_embeddings": "max_t",
    "vocab_size": "v",
}
ROPE = {"rope_type", "type", "rope_theta"}  # entries of rope_parameters that are known here
PREFIXES = ("_orig_mod.", "module.", "model.")
NO_WEIGHTS = re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # in files of older versions
HEAD = "lm_head.weight"

Weights = Mapping[str, torch.Tensor]


# --- configuration ---


def model_of(config: Mapping[str, Any], where: Path) -> Llama2:
    """The model of a config.json. CannotGoOn for one that computes otherwise, or says no sizes."""
    for key, allowed in MUST_BE.items():
        if config.get(key) not in allowed:
            raise CannotGoOn(f"{where}: {key} is {config.get(key)!r}, and the Llama 2 here has {allowed[0]!r}")
    try:
        L, NH, C, H, max_t, v = (int(config[theirs]) for theirs in SIZES)
        grouped = config.get("num_key_value_heads")
        NKV = NH if grouped is None else int(grouped)
        theta, eps = _theta(config, where), _eps(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CannotGoOn(f"{where}: no sizes of a Llama ({error})") from None
    impossible = min(L, NH, C, H, max_t, v, NKV) < 1 or max(max_t, v) > MOST
    if impossible or C % NH or NH % NKV or C // NH % 2:
        said = f"L {L}, NH {NH}, NKV {NKV}, C {C}, H {H}, max_t {max_t}, v {v}"
        raise CannotGoOn(f"{where}: no Llama has these sizes: {said}")
    if config.get("head_dim") not in (None, C // NH):
        raise CannotGoOn(f"{where}: head_dim is {config['head_dim']!r}, and the Llama 2 here has {C // NH}")
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise CannotGoOn(f"{where}: tie_word_embeddings is {tied!r}, and neither true nor false")
    sizes: dict[str, Any] = dict(L=L, NH=NH, NKV=NKV, C=C, H=H, max_t=max_t, v=v)
    return named_model(Llama2(f"llama2-{L}x{C}", **sizes, tied=tied, theta=theta, eps=eps))


def _eps(config: Mapping[str, Any]) -> float:
    eps = float(config.get("rms_norm_eps", NORM_EPS))
    if not 0 < eps < 1:
        raise ValueError(f"rms_norm_eps {eps}")
    return eps


def _theta(config: Mapping[str, Any], where: Path) -> float:
    rope = config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else None
    if kind != "default" or rope.keys() - ROPE:
        raise CannotGoOn(f"{where}: rope_parameters is {rope!r}, and the Llama 2 here has rope_type 'default'")
    theta = float(rope.get("rope_theta", config.get("rope_theta", THETA)))
    if not 0 < theta < float("inf"):
        raise ValueError(f"rope_theta {theta}")
    return theta


def need_same(found: Llama2, model: Llama2, where: object) -> None:
    """CannotGoOn unless weights of `found` are `model`'s; it may have fewer positions, and fewer padded tokens."""
    for name in ("L", "NH", "NKV", "C", "H", "tied", "theta", "eps"):
        if getattr(found, name) != getattr(model, name):
            raise CannotGoOn(f"{where}: its {name} is {getattr(found, name)}, {model.name}'s {getattr(model, name)}")
    if found.max_t < model.max_t:
        raise CannotGoOn(f"{where}: it has {found.max_t:,} positions, {model.name} {model.max_t:,}")
    if found.v not in (model.v, model.vp):
        raise CannotGoOn(f"{where}: a vocabulary of {found.v:,}, {model.name} has {model.v:,}")


def config_of(model: Llama2, dtype: str) -> dict[str, Any]:
    """config.json of a model whose weights are in `dtype`, as "bfloat16"; old and new versions read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(model, ours) for theirs, ours in SIZES.items()},
        "num_key_value_heads": model.NKV,
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.eps,
        "rope_theta": model.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.theta},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": INIT_STD,
        "tie_word_embeddings": model.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }


# --- tensors ---


def places(model: Llama2) -> Iterator[tuple[str, int, int, str, int]]:
    """(our name, its first row, rows, their name without "model.", heads to be turned or 0), in our order."""
    C, H, keys = model.C, model.H, model.NKV * model.head_size
    yield "wte", 0, model.v, "embed_tokens.weight", 0
    for i in range(model.L):
        theirs = f"layers.{i}."
        yield f"h{i}.norm1.weight", 0, C, theirs + "input_layernorm.weight", 0
        yield f"h{i}.qkv.weight", 0, C, theirs + "self_attn.q_proj.weight", model.NH
        yield f"h{i}.qkv.weight", C, keys, theirs + "self_attn.k_proj.weight", model.NKV
        yield f"h{i}.qkv.weight", C + keys, keys, theirs + "self_attn.v_proj.weight", 0
        yield f"h{i}.attproj.weight", 0, C, theirs + "self_attn.o_proj.weight", 0
        yield f"h{i}.norm2.weight", 0, C, theirs + "post_attention_layernorm.weight", 0
        yield f"h{i}.gate_up.weight", 0, H, theirs + "mlp.gate_proj.weight", 0
        yield f"h{i}.gate_up.weight", H, H, theirs + "mlp.up_proj.weight", 0
        yield f"h{i}.down.weight", 0, C, theirs + "mlp.down_proj.weight", 0
    yield "norm.weight", 0, C, "norm.weight", 0
    if not model.tied:
        yield "head.weight", 0, model.v, HEAD, 0


def halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (heads*HS, K) whose pairs are neighbours, as those whose pairs are HS/2 apart."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """What `halves` was made of."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def convert(tensors: Weights, model: Llama2, where: object) -> dict[str, torch.Tensor]:
    """fp32 weights by our names; the vocabulary's rows of padding become zeros.

    CannotGoOn for a tensor that is missing, has another shape, is none of Llama's, or a head that is not tied as it is
    said to be.
    """
    if len(tensors) < model.L:  # before a damaged configuration's layers are listed
        raise CannotGoOn(f"{where}: {len(tensors)} tensors are too few for {model.L} layers")
    found = {_bare(name): tensor for name, tensor in tensors.items()}
    shapes = model.parameter_shapes()
    weights: dict[str, torch.Tensor] = {}
    for ours, first, rows, theirs, heads in places(model):
        if theirs not in found:
            raise CannotGoOn(f"{where}: {theirs} is missing: no Llama, or a smaller one than {model.name}")
        tensor = found.pop(theirs)
        if not tensor.is_floating_point():
            raise CannotGoOn(f"{where}: {theirs} is {tensor.dtype}: quantized weights are not read")
        shape = (rows, *shapes[ours][1:])
        if ours in ("wte", "head.weight") and len(tensor.shape) == 2 and len(tensor) == model.vp:
            tensor = tensor[: model.v]
        if tuple(tensor.shape) != shape:
            raise CannotGoOn(f"{where}: {theirs} is {tuple(tensor.shape)}, {model.name}'s is {shape}")
        if ours not in weights:
            weights[ours] = torch.zeros(shapes[ours])
        weights[ours][first : first + rows] = neighbours(tensor, heads) if heads else tensor
    if model.tied and HEAD in found:
        head = found.pop(HEAD)
        if head.dim() != 2 or not torch.equal(head[: model.v].float(), weights["wte"][: model.v]):
            raise CannotGoOn(f"{where}: its head is not tied to its embedding, as its configuration says")
    if foreign := sorted(name for name in found if not NO_WEIGHTS.fullmatch(name)):
        raise CannotGoOn(f"{where}: {foreign[0]} is none of {model.name}'s tensors")
    return weights


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def named(weights: Weights, model: Llama2) -> dict[str, torch.Tensor]:
    """Our weights by their names, in the weights' dtype, without padding."""
    found = {}
    for ours, first, rows, theirs, heads in places(model):
        tensor = weights[ours][first : first + rows]
        name = theirs if theirs == HEAD else f"model.{theirs}"
        found[name] = halves(tensor, heads) if heads else tensor
    return found

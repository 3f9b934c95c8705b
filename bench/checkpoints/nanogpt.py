"""nanoGPT's names of GPT-2's tensors, in a safetensors file: `save_file(model.state_dict(), …)` of its checkpoint.

Source: karpathy/nanoGPT, model.py. Its own ckpt.pt is a pickle, which is never read. Weights are (out, in), as ours;
Hugging Face has the same names, and the four matrices of a block transposed.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.checkpoints.tensors import new_file, save_to
from bench.cli import CannotGoOn
from reference.models.gpt2 import GPT2

PARTS = {
    "ln1": "ln_1",
    "qkv": "attn.c_attn",
    "attproj": "attn.c_proj",
    "ln2": "ln_2",
    "fc": "mlp.c_fc",
    "fcproj": "mlp.c_proj",
}
MATRICES = ("qkv", "attproj", "fc", "fcproj")
PREFIXES = ("_orig_mod.", "module.", "transformer.")  # torch.compile's, DistributedDataParallel's, the module's own
NO_WEIGHTS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # masks that older versions keep beside the weights
HEAD = "lm_head.weight"

Weights = Mapping[str, torch.Tensor]


def names(model: GPT2) -> dict[str, str]:
    """{our name: theirs, without a prefix}."""
    found = {"wte": "wte.weight", "wpe": "wpe.weight"}
    for i in range(model.L):
        for ours, theirs in PARTS.items():
            found |= {f"h{i}.{ours}.{kind}": f"h.{i}.{theirs}.{kind}" for kind in ("weight", "bias")}
    return found | {f"lnf.{kind}": f"ln_f.{kind}" for kind in ("weight", "bias")}


def is_matrix(name: str) -> bool:
    """Whether our name is that of a matrix which Hugging Face has transposed."""
    return name.endswith(".weight") and name.split(".")[-2] in MATRICES


def fits(tensors: Weights, model: GPT2) -> bool:
    """Whether tensors with these names are of this size, as far as shapes tell: they do not tell the heads."""
    shapes = {_bare(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = {name.split(".")[1] for name in shapes if name.startswith("h.")}
    tables = shapes.get("wpe.weight"), shapes.get("wte.weight")
    return len(blocks) == model.L and tables in [((model.max_t, model.C), (v, model.C)) for v in (model.v, model.vp)]


def convert(tensors: Weights, model: GPT2, where: object) -> dict[str, torch.Tensor]:
    """fp32 weights by our names. wte's rows beyond the vocabulary become zeros, missing biases (bias=False) too.

    CannotGoOn for a tensor that is missing, has another shape, is none of GPT-2's, or a head that is not tied.
    """
    if len(tensors) < model.L:  # before a damaged configuration's layers are listed
        raise CannotGoOn(f"{where}: {len(tensors)} tensors are too few for {model.L} layers")
    found = {_bare(name): tensor for name, tensor in tensors.items()}
    shapes, C = model.parameter_shapes(), model.C
    first = found.get("h.0.attn.c_attn.weight")
    transposed = first is not None and tuple(first.shape) == (C, 3 * C)
    without_biases = not any(name.endswith("c_attn.bias") for name in found)
    weights = {}
    for ours, theirs in names(model).items():
        if theirs not in found and ours.endswith(".bias") and without_biases:
            weights[ours] = torch.zeros(shapes[ours])
            continue
        if theirs not in found:
            raise CannotGoOn(f"{where}: {theirs} is missing: no GPT-2, or a smaller one than {model.name}")
        tensor = found.pop(theirs)
        if not tensor.is_floating_point():
            raise CannotGoOn(f"{where}: {theirs} is {tensor.dtype}: quantized weights are not read")
        tensor = tensor.float()
        if transposed and is_matrix(ours):
            tensor = tensor.t().contiguous()
        if ours == "wte":
            tensor = _padded(tensor, model, found.pop(HEAD, None), where)
        if tuple(tensor.shape) != tuple(shapes[ours]):
            raise CannotGoOn(f"{where}: {theirs} is {tuple(tensor.shape)}, {model.name}'s is {tuple(shapes[ours])}")
        weights[ours] = tensor
    if foreign := sorted(name for name in found if not NO_WEIGHTS.fullmatch(name)):
        raise CannotGoOn(f"{where}: {foreign[0]} is none of {model.name}'s tensors")
    return weights


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _padded(wte: torch.Tensor, model: GPT2, head: torch.Tensor | None, where: object) -> torch.Tensor:
    """(v, C), or with padding rows of any contents, as (vp, C) with rows of zeros."""
    if head is not None and not torch.equal(head.float(), wte):
        raise CannotGoOn(f"{where}: its head is not tied to wte, as {model.name}'s is")
    rows = len(wte)
    if rows not in (model.v, model.vp):
        raise CannotGoOn(f"{where}: a vocabulary of {rows:,}, {model.name} has {model.v:,}")
    return F.pad(wte[: model.v], (0, 0, 0, model.vp - model.v))


def named(weights: Weights, model: GPT2, transpose: bool) -> dict[str, torch.Tensor]:
    """Our weights by their names, wte without padding; transpose: as Hugging Face's Conv1D has its matrices."""
    found = {}
    for ours, theirs in names(model).items():
        tensor = weights[ours][: model.v] if ours == "wte" else weights[ours]
        found[f"transformer.{theirs}"] = tensor.t().contiguous() if transpose and is_matrix(ours) else tensor
    return found


def write_file(path: Path, weights: Weights, model: GPT2) -> None:
    """Write a .safetensors file with nanoGPT's names, its tied head under both. CannotGoOn where a file is there."""
    found = named(weights, model, transpose=False)
    with new_file(path) as file:
        save_to(file, {**found, HEAD: found["transformer.wte.weight"]}, {"format": "pt"})

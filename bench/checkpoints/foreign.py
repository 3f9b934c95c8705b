"""Weights from whatever file or folder is given, and into the one that is asked for."""

import shutil
from pathlib import Path

import numpy as np
import torch

from bench.checkpoints import hugging_face, llmc, nanogpt, run
from bench.checkpoints.state import State, describe, described, need_same_model
from bench.checkpoints.tensors import read
from bench.cli import CannotGoOn
from reference.models.model import Model

TAKEN = (
    "a run's folder or a checkpoint of it, a Hugging Face folder, llm.c's model .bin or output folder, "
    "or a .safetensors file with nanoGPT's names"
)
PICKLES = (".pt", ".pth", ".ckpt", ".pkl")


def weights_from(path: Path, model: Model) -> dict[str, torch.Tensor]:
    """Weights to start from, by our names, wte with its padding; fp32 but for our own and llm.c's, which keep their
    dtype (masters are taken where there are any).

    path: TAKEN. CannotGoOn, in one line, for anything else, and where they are not `model`'s.
    """
    if not path.exists():
        raise CannotGoOn(f"{path}: no such file or folder")
    if path.is_file():
        return _of_file(path, model)
    if (path / hugging_face.CONFIG).exists():
        return hugging_face.read_folder(path, llmc.need_gpt2(model, "Hugging Face's folder"))[1]
    if llmc.newest_step(path) is not None:
        state = llmc.read_run(path)
        need_same_model(state.model, model, path)
    else:
        state = run.load(checkpoint_in(path), model)
    return dict(state.masters or state.weights)


def _of_file(path: Path, model: Model) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        tensors = read(path)
        if tensors.keys() == model.parameter_shapes().keys():  # weights.safetensors of a checkpoint
            for name, sizes in model.parameter_shapes().items():
                if tuple(tensors[name].shape) != tuple(sizes):
                    raise CannotGoOn(
                        f"{path}: {name} is {tuple(tensors[name].shape)}, {model.name}'s is {tuple(sizes)}"
                    )
            return tensors
        return nanogpt.convert(tensors, llmc.need_gpt2(model, "a .safetensors file with nanoGPT's names"), path)
    magic = np.fromfile(path, dtype="<i4", count=1)
    if magic.size and magic[0] == llmc.MODEL:
        found, _, weights = llmc.read_model(path)
        need_same_model(describe(found), model, path)
        return weights
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in PICKLES or start == b"PK" or start[:1] == b"\x80":
        raise CannotGoOn(f"{path}: a pickle, which is never read; give its weights as .safetensors")
    raise CannotGoOn(f"{path}: weights of no known format; what is taken is {TAKEN}")


def checkpoint_in(path: Path) -> Path:
    """`path` where it is a checkpoint; else the newest whole one of a run's folder. CannotGoOn where there is none."""
    if run.is_checkpoint(path):
        return path
    for folder in (path / "checkpoints", path):
        for _, found in reversed(run.checkpoints(folder)):
            if run.why_torn(found) is None:
                return found
        if torn := run.checkpoints(folder):
            raise CannotGoOn(f"{folder}: all checkpoints are torn, the newest: {run.why_torn(torn[-1][1])}")
    raise CannotGoOn(f"{path}: no checkpoint is there, nor anything else of {TAKEN}")


def read_any(path: Path) -> tuple[Model, State]:
    """The model and state of a checkpoint, or of a run's newest whole one, whatever its model."""
    path = checkpoint_in(path)
    model = described(run.model_of(path), path)
    return model, run.load(path, model)


def export(path: Path, format: str, out: Path) -> str:
    """Write a run's newest checkpoint, or the one given, in another program's format; what was written, in a line.

    format: of bench.checkpoints.EXPORTS. CannotGoOn where something is at `out`, or the format does not know the model.
    """
    found, state = read_any(path)
    model = llmc.need_gpt2(found, f"--format {format}")
    if out.exists():
        raise CannotGoOn(f"{out}: it is there, and stays; take another name")
    if format == "hf":
        hugging_face.write_folder(out, state.weights, model)
        what = "for GPT2LMHeadModel.from_pretrained"
    elif format == "nanogpt":
        nanogpt.write_file(out, state.weights, model)
        what = "with nanoGPT's names"
    elif out.suffix == ".bin":
        llmc.write_model(out, model, state.dtype, state.weights)
        what = "llm.c's model"
    else:
        llmc.write_run(out, state, model)
        tokenizer = checkpoint_in(path).parent / "tokenizer.bin"
        if tokenizer.exists():  # under the name that its programs look for
            shutil.copyfile(tokenizer, out / "gpt2_tokenizer.bin")
        what = f"for llm.c, to go on from step {state.step} with -y 1"
    return f"{out}: {model.name} after {state.step:,} steps in {state.dtype}, {what}"

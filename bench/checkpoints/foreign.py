"""Weights from whatever file or folder is given, and into the one that is asked for."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import torch

from bench.checkpoints import GROUP, gguf, hf_llama, hf_tokenizer, hugging_face, llama2c, llmc, nanogpt, run
from bench.checkpoints.state import State, describe, described, need_same_model
from bench.checkpoints.tensors import new_folder, read
from bench.cli import CannotGoOn, no_such
from bench.core.case import DTYPES
from bench.text import scored
from bench.text.vocabularies import Codec, Fast, Ranked, gpt2_at_hand, open_tokenizer, tokenizer_in
from reference.models import MODELS
from reference.models.gpt2 import GPT2, VOCAB
from reference.models.llama2 import Llama2
from reference.models.model import Model

TAKEN = (
    "a run's folder or a checkpoint of it, a Hugging Face folder, llm.c's model .bin or output folder, llama2.c's "
    "model .bin or a folder with its model.bin, llama.cpp's .gguf, or a .safetensors file with nanoGPT's names"
)
LLAMA2C = "model.bin", "tokenizer.bin"  # in a folder that is exported for llama2.c
PICKLES = (".pt", ".pth", ".ckpt", ".pkl")
Weights = dict[str, torch.Tensor]


# --- in ---


def open_weights(path: Path, tokenizer: Path | None = None) -> tuple[Model, Weights, Codec | None]:
    """(model, weights by our names, the tokenizer that lies with them or None) of TAKEN, whatever the model; wte has
    its padding. Weights are fp32, but for our own and llm.c's, which keep the dtype that they are computed with in.

    tokenizer: a file to take instead of what lies there. CannotGoOn, in one line, for anything else.
    """
    model, weights, folder = _opened(path)
    codec = _tokenizer(folder, model, tokenizer)
    if codec is None and (model.tokenizer, model.v) == ("gpt2", VOCAB):
        codec = gpt2_at_hand()
    return model, weights, codec


def _tokenizer(place: Path, model: Model, named: Path | None) -> Codec | None:
    if named is not None:
        return open_tokenizer(named, model.v)
    if isinstance(model, Llama2) and place.is_file():
        return gguf.tokenizer_of(place, model) or tokenizer_in(place.parent, model.v)
    return tokenizer_in(place, model.v)


def _opened(path: Path) -> tuple[Model, Weights, Path]:
    """Model, weights, and the folder in which their tokenizer lies if there is one, or the file that has it."""
    path = _within(path)
    if not path.exists():
        raise CannotGoOn(no_such(path))
    if path.is_file():
        return *_of_any_file(path), path if gguf.is_one(path) else path.parent
    if (path / hugging_face.CONFIG).exists():
        return *hugging_face.read_folder(path), path
    if llmc.newest_step(path) is not None:
        state = llmc.read_run(path)
        return described(state.model, path), dict(state.weights), path
    checkpoint = checkpoint_in(path)
    model, state = read_any(checkpoint)
    return model, dict(state.weights), checkpoint.parent


def _within(path: Path) -> Path:
    """The model's file of a folder that holds llama2.c's, as `export` writes it; else the path itself."""
    file = path / LLAMA2C[0]
    return file if file.is_file() and llama2c.is_one(file) else path


def _of_any_file(path: Path) -> tuple[Model, Weights]:
    kind = _kind(path)
    if kind == "llm.c":
        gpt2, _, weights = llmc.read_model(path)
        return gpt2, weights
    if kind == "llama2.c":
        return llama2c.read_model(path)
    if kind == "GGUF":
        return gguf.read_model(path)
    if run.is_checkpoint(path.parent) and path.name == run.WEIGHTS:
        model, state = read_any(path.parent)
        return model, dict(state.weights)
    tensors = read(path)
    for known in MODELS.values():
        if type(known) is GPT2 and nanogpt.fits(tensors, known):
            return known, nanogpt.convert(tensors, known, path)
    raise CannotGoOn(f"{path}: it does not say how many heads its model has, and none of the known ones fits it")


def weights_from(path: Path, model: Model) -> Weights:
    """Weights to start from, by our names, wte with its padding; fp32 but for our own and llm.c's, which keep their
    dtype (masters are taken where there are any).

    path: TAKEN. CannotGoOn, in one line, for anything else, and where they are not `model`'s.
    """
    path = _within(path)
    if not path.exists():
        raise CannotGoOn(no_such(path))
    if path.is_file():
        return _of_file(path, model)
    if (path / hugging_face.CONFIG).exists():
        return hugging_face.read_folder(path, model)[1]
    if llmc.newest_step(path) is not None:
        state = llmc.read_run(path)
        need_same_model(state.model, model, path)
    else:
        state = run.load(checkpoint_in(path), model)
    return dict(state.masters or state.weights)


def _of_file(path: Path, model: Model) -> Weights:
    kind = _kind(path)
    if kind == "llm.c":
        found, _, weights = llmc.read_model(path)
        need_same_model(describe(found), model, path)
        return weights
    if kind in ("llama2.c", "GGUF"):
        llama = llama2c.need_llama2(model, f"{kind}'s model")
        found_llama, weights = (llama2c if kind == "llama2.c" else gguf).read_model(path)
        hf_llama.need_same(found_llama, llama, path)
        for name in weights.keys() & {"wte", "head.weight"}:
            weights[name][model.v :] = 0  # of a vocabulary that was padded already
        return weights
    tensors = read(path)
    if tensors.keys() == model.parameter_shapes().keys():  # weights.safetensors of a checkpoint
        for name, sizes in model.parameter_shapes().items():
            if tuple(tensors[name].shape) != tuple(sizes):
                raise CannotGoOn(f"{path}: {name} is {tuple(tensors[name].shape)}, {model.name}'s is {tuple(sizes)}")
        return tensors
    return nanogpt.convert(tensors, llmc.need_gpt2(model, "a .safetensors file with nanoGPT's names"), path)


def _kind(path: Path) -> str:
    """Of a file: "safetensors", "llm.c", "llama2.c" or "GGUF". CannotGoOn for anything else."""
    if path.suffix == ".safetensors":
        return "safetensors"
    try:
        magic = np.fromfile(path, dtype="<i4", count=1)
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CannotGoOn(f"{path}: cannot be read ({error.strerror})") from None
    pickled = start == b"PK" or start[:1] == b"\x80"  # so begins a model of 128 channels too
    if path.suffix in PICKLES or (pickled and not llama2c.is_one(path)):
        raise CannotGoOn(f"{path}: a pickle, which is never read; give its weights as .safetensors")
    if magic.size and magic[0] == llmc.MODEL:
        return "llm.c"
    if llama2c.is_one(path):
        return "llama2.c"
    if gguf.is_one(path):
        return "GGUF"
    raise CannotGoOn(f"{path}: weights of no known format; what is taken is {TAKEN}")


def checkpoint_in(path: Path, hint: str = f"nor anything else of {TAKEN}") -> Path:
    """`path` where it is a checkpoint; else the newest whole one of a run's folder. CannotGoOn, with the hint, where
    there is none."""
    if run.is_checkpoint(path):
        return path
    for folder in (path / "checkpoints", path):
        for _, found in reversed(run.checkpoints(folder)):
            if run.why_torn(found) is None:
                return found
        if torn := run.checkpoints(folder):
            raise CannotGoOn(f"{folder}: all checkpoints are torn, the newest: {run.why_torn(torn[-1][1])}")
    if not path.exists():
        raise CannotGoOn(no_such(path))
    raise CannotGoOn(f"{path}: no checkpoint is there, {hint}")


def read_any(path: Path) -> tuple[Model, State]:
    """The model and state of a checkpoint, or of a run's newest whole one, whatever its model."""
    path = checkpoint_in(path)
    model = described(run.model_of(path), path)
    return model, run.load(path, model)


# --- out ---


def export(
    path: Path,
    format: str,
    out: Path,
    version: int = 0,
    group: int = GROUP,
    tokenizer: Path | None = None,
    dtype: str | None = None,
) -> str:
    """Write a run's newest checkpoint, the one given, or what another program wrote, in another program's format; what
    was written, in a line.

    format: of bench.checkpoints.EXPORTS; version, group: of llama2.c's file; dtype: of GGUF_KINDS, of llama.cpp's,
    default the weights'; tokenizer: a file to take, for formats that have one, instead of what lies with the weights.
    CannotGoOn where something is at `out`, or the format does not know the model.
    """
    model, state, folder = _to_export(path)
    if out.exists():
        raise CannotGoOn(f"{out}: it is there, and stays; take another name")
    if format == "hf":
        kind, codec = hugging_face.kind_of(model), _tokenizer(folder, model, tokenizer)
        beside = hf_tokenizer.files(codec, model)
        hugging_face.write_folder(out, state.weights, model, beside=beside)
        what = f"for {kind.loader}.from_pretrained" + (f", with {codec.name}" if codec and beside else "")
    elif format == "llama2c":
        llama, codec = llama2c.need_llama2(model, "--format llama2c"), _tokenizer(folder, model, tokenizer)
        what = _export_llama2c(out, llama, state, codec, version, group)
    elif format == "gguf":
        llama, codec = llama2c.need_llama2(model, "--format gguf"), _tokenizer(folder, model, tokenizer)
        pieces = _pieces(codec, llama)
        gguf.write_model(out, llama, state.weights, dtype or state.dtype, pieces)
        what = f"GGUF in {dtype or state.dtype}, {f'with {pieces.name}' if pieces else 'without a tokenizer'}"
    elif format == "nanogpt":
        nanogpt.write_file(out, state.weights, llmc.need_gpt2(model, "--format nanogpt"))
        what = "with nanoGPT's names"
    elif out.suffix == ".bin":
        llmc.write_model(out, llmc.need_gpt2(model, "--format llmc"), state.dtype, state.weights)
        what = "llm.c's model"
    else:
        with new_folder(out) as folder:
            llmc.write_run(folder, state, llmc.need_gpt2(model, "--format llmc"))
            _copy_tokenizer(path, folder)
        what = f"for llm.c, to go on from step {state.step} with -y 1"
    steps = f" after {state.step:,} steps" if state.step >= 0 else ""
    return f"{out}: {model.name}{steps} in {state.dtype}, {what}"


def _to_export(path: Path) -> tuple[Model, State, Path]:
    """Of a run, its state; of anything else a state of weights alone, of step -1: nobody knows. And the folder in which
    the tokenizer lies if there is one."""
    path = _within(path)
    if path.is_dir() and not (path / hugging_face.CONFIG).exists() and llmc.newest_step(path) is None:
        model, state = read_any(path)
        return model, state, checkpoint_in(path).parent
    model, weights, folder = _opened(path)
    dtype = next(name for name, dtype in DTYPES.items() if dtype == weights["wte"].dtype)
    return model, State(-1, describe(model), dtype, weights), folder


def _copy_tokenizer(path: Path, out: Path) -> None:
    """A run's, under the name that llm.c's programs look for."""
    with contextlib.suppress(CannotGoOn):
        tokenizer = checkpoint_in(path).parent / "tokenizer.bin"
        if tokenizer.exists():
            shutil.copyfile(tokenizer, out / "gpt2_tokenizer.bin")


def _pieces(codec: Codec | None, model: Llama2) -> scored.Scored | None:
    """A tokenizer as pieces with scores; None where it is of another kind."""
    if isinstance(codec, Ranked) and codec.begin:  # Llama's tokens of single bytes
        return scored.of_bytes(model.v)
    if isinstance(codec, Fast):
        return hf_tokenizer.pieces_of(codec, model.v)
    return codec if isinstance(codec, scored.Scored) else None


def _export_llama2c(out: Path, model: Llama2, state: State, codec: Codec | None, version: int, group: int) -> str:
    """A model .bin, or a folder of one and its tokenizer, where that has llama2.c's form."""
    pieces = _pieces(codec, model)
    if alone := out.suffix == ".bin":
        head = llama2c.write_model(out, model, state.weights, version, group)
    else:
        with new_folder(out) as folder:
            head = llama2c.write_model(folder / LLAMA2C[0], model, state.weights, version, group)
            if pieces:
                scored.write_tokenizer(folder / LLAMA2C[1], pieces)
    grouped = f" with groups of {head.group}" if version == 2 else ""
    return f"llama2.c's model, version {version}{grouped}" + (f", with {pieces.name}" if pieces and not alone else "")

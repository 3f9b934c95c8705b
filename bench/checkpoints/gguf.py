"""GGUF, the file of llama.cpp: a Llama and its tokenizer in fp32, bf16, fp16 or Q8_0, written and read.

Source of the layout: ggml, docs/gguf.md (version 3); of names and of what metadata mean: llama.cpp, gguf-py and
src/llama-vocab.cpp; of Q8_0: ggml, quantize_row_q8_0_ref.

All is little-endian: "GGUF", uint32 version, uint64 tensors, uint64 entries; each entry a key, a type and a value; of
each tensor name, sizes (the innermost first), type and offset; then, from a multiple of general.alignment on, the data,
each tensor at such a multiple. Strings are a uint64 length and bytes.

Queries and keys turn in neighbouring pairs, as in our weights. A tied head is not there twice. Q8_0 is 32 values of a
row with an fp16 scale; rows that 32 does not divide, and norms, stay in fp32. Where the tokenizer has no piece for a
space, as the one of single bytes, the byte's token is named as llama.cpp names a space, which it puts before it looks
for bytes: so it reads texts as we do.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from bench.checkpoints import GGUF_KINDS as KINDS
from bench.checkpoints.state import named_model
from bench.checkpoints.tensors import new_file
from bench.cli import CannotGoOn
from bench.text import scored
from bench.text.scored import BEGIN, BYTE, END, FIRST_BYTE, NEVER, Scored
from reference.models.llama2 import Llama2

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # that are read; of the same layout
ALIGNMENT = 32
BLOCK = 32  # values that share a scale in Q8_0
Q8 = np.dtype([("d", "<f2"), ("q", "i1", BLOCK)])
TYPES = {"fp32": 0, "fp16": 1, "q8_0": 8, "bf16": 30}  # ggml's numbers
FILE_TYPES = {"fp32": 0, "fp16": 1, "q8_0": 7, "bf16": 32}  # general.file_type
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE_TOKEN = 1, 2, 3, 5, 6  # tokenizer.ggml.token_type
MOST = 1 << 24  # entries, tensors, elements of an array, bytes of a string: a damaged number is more
LONGEST_AXIS = 1 << 40
SPACE = "▁".encode()  # sentencepiece's sign for one
SPECIAL = (b"<unk>", b"<s>", b"</s>")
OF_LLAMA2C = (b"<unk>", b"\n<s>\n", b"\n</s>\n")  # as its tokenizer.bin names them
# What would compute something else; None: not said.
MUST_BE: dict[str, tuple[Any, ...]] = {
    "llama.rope.scaling.type": (None, "none"),
    "llama.rope.scaling.factor": (None, 1.0),
    "llama.expert_count": (None, 0),
    "llama.attention.causal": (None, True),
}
SIZES = {
    "llama.block_count": "L",
    "llama.attention.head_count": "NH",
    "llama.embedding_length": "C",
    "llama.feed_forward_length": "H",
    "llama.context_length": "max_t",
}

Weights = Mapping[str, torch.Tensor]


# --- tensors ---


def places(model: Llama2) -> Iterator[tuple[str, str, int, int]]:
    """(their name, ours, its first row, rows), in their order; a norm is one row. Nothing of a tied head."""
    C, H, keys = model.C, model.H, model.NKV * model.head_size
    yield "token_embd.weight", "wte", 0, model.v
    for i in range(model.L):
        for theirs, ours, first, rows in (
            ("attn_norm", "norm1", 0, 1),
            ("attn_q", "qkv", 0, C),
            ("attn_k", "qkv", C, keys),
            ("attn_v", "qkv", C + keys, keys),
            ("attn_output", "attproj", 0, C),
            ("ffn_norm", "norm2", 0, 1),
            ("ffn_gate", "gate_up", 0, H),
            ("ffn_up", "gate_up", H, H),
            ("ffn_down", "down", 0, C),
        ):
            yield f"blk.{i}.{theirs}.weight", f"h{i}.{ours}.weight", first, rows
    yield "output_norm.weight", "norm.weight", 0, 1
    if not model.tied:
        yield "output.weight", "head.weight", 0, model.v


def row_of(model: Llama2, ours: str) -> int:
    """Numbers in a row of one of our tensors."""
    return model.parameter_shapes()[ours][-1]


def kept_as(kind: str, rows: int, row: int) -> str:
    """What a tensor is written in where the file is of `kind`."""
    return "fp32" if rows == 1 or (kind == "q8_0" and row % BLOCK) else kind


def bytes_of(kind: str, count: int) -> int:
    return count // BLOCK * Q8.itemsize if kind == "q8_0" else count * (4 if kind == "fp32" else 2)


def bytes_read(model: Llama2, kind: str, rows_of_table: int) -> int:
    """Of a file of `kind`, by one step that makes a token: every tensor once, of an embedding that is not the head too
    some rows."""
    total = 0
    for theirs, ours, _, rows in places(model):
        row = row_of(model, ours)
        read = rows_of_table if theirs == "token_embd.weight" and not model.tied else rows
        total += bytes_of(kept_as(kind, rows, row), read * row)
    return total


def quantised(rows: np.ndarray) -> np.ndarray:
    """Q8_0 of fp32 rows, as blocks: an fp16 scale, max|x| / 127, and int8 x / scale, half away from zero."""
    x = rows.reshape(-1, BLOCK)
    scale = np.abs(x).max(1) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = x * np.where(scale > 0, np.float32(1) / scale, np.float32(0))[:, None]
        found = np.empty(len(x), Q8)
        found["d"] = scale
    found["q"] = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return found


def encoded(rows: torch.Tensor, kind: str) -> bytes | None:
    """The bytes of a tensor; None where they cannot say what it is: it overflows, or is no number."""
    x = rows.detach().cpu().float().contiguous()
    if not torch.isfinite(x).all():
        return None
    if kind == "q8_0":
        blocks = quantised(x.numpy())
        return blocks.tobytes() if np.isfinite(blocks["d"]).all() else None
    made = x.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind])
    return made.view(torch.uint8).numpy().tobytes() if torch.isfinite(made).all() else None


def decoded(raw: bytes, kind: str) -> torch.Tensor:
    """fp32 values of a tensor's bytes."""
    if kind == "q8_0":
        blocks = np.frombuffer(raw, Q8)
        return torch.from_numpy(blocks["d"].astype(np.float32)[:, None] * blocks["q"].astype(np.float32)).flatten()
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.frombuffer(bytearray(raw), dtype=kinds[kind]).float()


# --- writing ---


def write_model(path: Path, model: Llama2, weights: Weights, kind: str = "fp32", pieces: Scored | None = None) -> None:
    """Write a model, and its tokenizer, as many pieces as it has tokens; without one programs are given ids alone.

    CannotGoOn where a file is there, or a value has no room in `kind`; ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind} is none of {', '.join(KINDS)}")
    if pieces and pieces.size != model.v:
        raise CannotGoOn(f"{path}: a tokenizer of {pieces.size:,} tokens, and {model.name} has {model.v:,}")
    infos, at, kinds = [], 0, []
    for theirs, ours, _, rows in places(model):
        row = row_of(model, ours)
        kinds.append(kept_as(kind, rows, row))
        sizes = (row,) if rows == 1 else (row, rows)
        infos.append(_string(theirs) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, TYPES[kinds[-1]], at))
        at += _aligned(bytes_of(kinds[-1], rows * row))
    entries = _entries(model, kind, pieces)
    with new_file(path) as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(infos), len(entries)))
        file.write(b"".join([*entries, *infos]))
        file.write(bytes(-file.tell() % ALIGNMENT))
        for (_, ours, first, rows), of in zip(places(model), kinds, strict=True):
            raw = encoded(weights[ours].view(-1, row_of(model, ours))[first : first + rows], of)
            if raw is None:
                raise CannotGoOn(f"{path}: {ours} of {model.name} has values that {of} cannot say")
            file.write(raw.ljust(_aligned(len(raw)), b"\0"))


def _aligned(size: int, to: int = ALIGNMENT) -> int:
    return -(-size // to) * to


def _string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, kind: int, value: Any) -> bytes:
    return _string(key) + struct.pack("<I", kind) + _value(kind, value)


def _value(kind: int, value: Any) -> bytes:
    return _string(value) if kind == STRING else struct.pack("<" + SCALARS[kind], value)


def _array(key: str, kind: int, values: list[Any]) -> bytes:
    head = _string(key) + struct.pack("<IIQ", ARRAY, kind, len(values))
    return head + b"".join(_value(kind, value) for value in values)


def _entries(model: Llama2, kind: str, pieces: Scored | None) -> list[bytes]:
    sizes = {theirs: getattr(model, ours) for theirs, ours in SIZES.items()}
    sizes |= {"llama.attention.head_count_kv": model.NKV, "llama.vocab_size": model.v}
    sizes |= {"llama.rope.dimension_count": model.head_size, "general.file_type": FILE_TYPES[kind]}
    return [
        _entry("general.architecture", STRING, "llama"),
        _entry("general.name", STRING, model.name),
        _entry("general.alignment", UINT32, ALIGNMENT),
        *(_entry(key, UINT32, size) for key, size in sizes.items()),
        _entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, model.eps),
        _entry("llama.rope.freq_base", FLOAT32, model.theta),
        *(_vocabulary(pieces) if pieces else [_entry("tokenizer.ggml.model", STRING, "no_vocab")]),
    ]


def _vocabulary(pieces: Scored) -> list[bytes]:
    spaces = b" " in pieces.ids
    tokens, kinds = [], []
    for i, (piece, score) in enumerate(zip(pieces.pieces, pieces.scores, strict=True)):
        if i < len(SPECIAL):
            tokens.append(SPECIAL[i])
            kinds.append(UNKNOWN if i == 0 else CONTROL)
        elif i == FIRST_BYTE + ord(" ") and not spaces:
            tokens.append(SPACE)
            kinds.append(NORMAL)
        else:
            byte = BYTE.fullmatch(piece)
            tokens.append(piece.replace(b" ", SPACE))
            kinds.append(BYTE_TOKEN if byte else UNUSED if score <= NEVER else NORMAL)
    return [
        _entry("tokenizer.ggml.model", STRING, "llama"),
        _array("tokenizer.ggml.tokens", STRING, tokens),
        _array("tokenizer.ggml.scores", FLOAT32, list(pieces.scores)),
        _array("tokenizer.ggml.token_type", INT32, kinds),
        _entry("tokenizer.ggml.bos_token_id", UINT32, BEGIN),
        _entry("tokenizer.ggml.eos_token_id", UINT32, END),
        _entry("tokenizer.ggml.unknown_token_id", UINT32, 0),
        _entry("tokenizer.ggml.add_bos_token", BOOL, True),
        _entry("tokenizer.ggml.add_space_prefix", BOOL, spaces),
    ]


# --- reading ---


@dataclass(frozen=True)
class Place:
    """Of a tensor in a file: its sizes, the innermost first, ggml's type, and the first byte."""

    sizes: tuple[int, ...]
    type: int
    start: int


def is_one(path: Path) -> bool:
    """Whether a file begins as one, whole or not."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_model(path: Path) -> tuple[Llama2, dict[str, torch.Tensor]]:
    """(model, fp32 weights by our names, rows of the vocabulary's padding zero). CannotGoOn, in one line, for what is
    no such file, whole, or computes otherwise."""
    with _opened(path) as file:
        said, found = _head(path, file)
        model = _model(path, said, found)
        kinds = {
            theirs: _kind(path, theirs, found[theirs], rows, row_of(model, ours))
            for theirs, ours, _, rows in places(model)
        }  # before memory is asked for
        if foreign := found.keys() - kinds.keys():
            raise CannotGoOn(f"{path}: {min(foreign)} is none of {model.name}'s tensors")
        weights = {name: torch.zeros(sizes) for name, sizes in model.parameter_shapes().items()}
        for theirs, ours, first, rows in places(model):
            row = row_of(model, ours)
            file.seek(found[theirs].start)
            values = decoded(file.read(bytes_of(kinds[theirs], rows * row)), kinds[theirs])
            weights[ours].view(-1, row)[first : first + rows] = values.view(rows, row)
    return model, weights


def _kind(path: Path, name: str, place: Place, rows: int, row: int) -> str:
    """What a tensor is kept in. CannotGoOn for another type, other sizes, and where the file ends before it does."""
    kind = next((kind for kind, code in TYPES.items() if code == place.type), "")
    if not kind:
        raise CannotGoOn(f"{path}: {name} is of ggml's type {place.type}; what is read is {', '.join(KINDS)}")
    if place.sizes not in ((row, rows), (row,) if rows == 1 else ()):
        raise CannotGoOn(f"{path}: {name} is {place.sizes}, the model's is {(row, rows)}")
    if kind == "q8_0" and row % BLOCK:
        raise CannotGoOn(f"{path}: {name} has rows of {row}, which {BLOCK} does not divide")
    end, size = place.start + bytes_of(kind, rows * row), path.stat().st_size
    if end > size:
        raise CannotGoOn(f"{path}: cut off in {name}: {size:,} bytes, and {end:,} are promised")
    return kind


def tokenizer_of(path: Path, model: Llama2) -> Scored | None:
    """The tokenizer that is in a model's file; None where there is none, or one of another kind than Llama's."""
    with _opened(path) as file:
        return _pieces(path, _head(path, file)[0], model)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise CannotGoOn(f"{path}: cannot be read ({error.strerror})") from None


class _Reader:
    """What stands before the tensors, bounded by the file's size."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = path.stat().st_size

    def take(self, count: int) -> bytes:
        raw = self.file.read(count) if count <= self.size else b""
        if len(raw) < count:
            raise CannotGoOn(f"{self.path}: cut off before its tensors, or damaged")
        return raw

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def number(self, form: str) -> Any:
        return self.numbers(form)[0]

    def count(self, what: str) -> int:
        found = self.number("Q")
        if found > MOST:
            raise CannotGoOn(f"{self.path}: damaged, or no GGUF: {found:,} {what}")
        return found

    def string(self) -> bytes:
        return self.take(self.count("bytes of a string"))

    def value(self, kind: int, deep: int = 0) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or deep > 2:
            raise CannotGoOn(f"{self.path}: damaged, or no GGUF: an entry of type {kind}")
        (of,), count = self.numbers("I"), self.count("elements")
        if of in SCALARS:
            return list(self.numbers(f"{count}{SCALARS[of]}"))
        return [self.value(of, deep + 1) for _ in range(count)]


def _head(path: Path, file: BinaryIO) -> tuple[dict[str, Any], dict[str, Place]]:
    """Entries (strings decoded, but for lists of them), and where tensors lie."""
    read = _Reader(path, file)
    if read.take(4) != MAGIC:
        raise CannotGoOn(f"{path}: no GGUF")
    if (version := read.number("I")) not in VERSIONS:
        raise CannotGoOn(f"{path}: version {version} of GGUF, this program reads {' and '.join(map(str, VERSIONS))}")
    tensors, entries = read.count("tensors"), read.count("entries")
    said: dict[str, Any] = {}
    for _ in range(entries):
        key, kind = read.string().decode(errors="replace"), read.number("I")
        value = read.value(kind)
        said[key] = value.decode(errors="replace") if isinstance(value, bytes) else value
    alignment = said.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= MOST or alignment % 8:
        raise CannotGoOn(f"{path}: damaged: general.alignment is {alignment!r}")
    places = []
    for _ in range(tensors):
        name, axes = read.string().decode(errors="replace"), read.number("I")
        if not 1 <= axes <= 4:
            raise CannotGoOn(f"{path}: damaged: {name} has {axes} axes")
        *sizes, kind, offset = read.numbers(f"{axes}QIQ")
        if max(sizes) > LONGEST_AXIS or offset % alignment or offset > read.size:
            raise CannotGoOn(f"{path}: damaged: {name} has sizes {tuple(sizes)} and lies at {offset:,}")
        places.append((name, tuple(sizes), kind, offset))
    begin = _aligned(file.tell(), alignment)
    return said, {name: Place(sizes, kind, begin + offset) for name, sizes, kind, offset in places}


def _model(path: Path, said: Mapping[str, Any], found: Mapping[str, Place]) -> Llama2:
    if (kind := said.get("general.architecture")) != "llama":
        raise CannotGoOn(f"{path}: general.architecture is {kind!r}, and this program knows 'llama'")
    for key, allowed in MUST_BE.items():
        if said.get(key) not in allowed:
            raise CannotGoOn(f"{path}: {key} is {said[key]!r}, and the Llama 2 here has {allowed[-1]!r}")
    try:
        sizes: dict[str, Any] = {ours: int(said[theirs]) for theirs, ours in SIZES.items()}
        NH, C = sizes["NH"], sizes["C"]
        sizes["NKV"] = int(said.get("llama.attention.head_count_kv", NH))
        sizes["v"] = found["token_embd.weight"].sizes[-1]
        eps = _shortest(said["llama.attention.layer_norm_rms_epsilon"])
        theta = _shortest(said.get("llama.rope.freq_base", 10000.0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CannotGoOn(f"{path}: no sizes of a Llama ({error})") from None
    impossible = min(sizes.values()) < 1 or max(sizes.values()) > MOST or not (0 < eps < 1 and 0 < theta < math.inf)
    if impossible or C % NH or NH % sizes["NKV"] or C // NH % 2:
        told = ", ".join(f"{name} {size}" for name, size in [*sizes.items(), ("eps", eps), ("theta", theta)])
        raise CannotGoOn(f"{path}: no Llama has these sizes: {told}")
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if said.get(f"llama.{key}", C // NH) != C // NH:
            raise CannotGoOn(f"{path}: llama.{key} is {said[f'llama.{key}']!r}, and the Llama 2 here has {C // NH}")
    if len(found) < sizes["L"]:  # before a damaged number of layers is listed
        raise CannotGoOn(f"{path}: {len(found)} tensors are too few for {sizes['L']} layers")
    tied = "output.weight" not in found
    name = f"llama2-{sizes['L']}x{C}"
    model = named_model(Llama2(name, **sizes, tied=tied, theta=theta, eps=eps))
    if missing := [theirs for theirs, *_ in places(model) if theirs not in found]:
        raise CannotGoOn(f"{path}: {missing[0]} is missing: no Llama, or a smaller one than it says")
    return model


def _shortest(value: float) -> float:
    """The shortest decimal that is this fp32 number: 1e-5, and not 9.99999974e-6."""
    return float(str(np.float32(value)))


def _pieces(path: Path, said: Mapping[str, Any], model: Llama2) -> Scored | None:
    """The tokenizer, with llama2.c's names; None where it is of another kind, or has no scores."""
    tokens, scores = said.get("tokenizer.ggml.tokens"), said.get("tokenizer.ggml.scores")
    ids = said.get("tokenizer.ggml.bos_token_id", BEGIN), said.get("tokenizer.ggml.eos_token_id", END)
    if said.get("tokenizer.ggml.model") != "llama" or not tokens or not scores or ids != (BEGIN, END):
        return None
    texts = isinstance(tokens, list) and all(isinstance(token, bytes) and token for token in tokens)
    numbers = isinstance(scores, list) and all(isinstance(s, float) and math.isfinite(s) for s in scores)
    if not (texts and numbers and len(tokens) == len(scores) == model.v):
        raise CannotGoOn(f"{path}: its tokenizer is damaged, or another model's ({model.v:,} tokens)")
    pieces = [token.replace(SPACE, b" ") for token in tokens]
    pieces[: len(OF_LLAMA2C)] = OF_LLAMA2C
    space = FIRST_BYTE + ord(" ")
    if not said.get("tokenizer.ggml.add_space_prefix", True) and space < len(pieces) and pieces[space] == b" ":
        pieces[space] = b"<0x20>"
    return scored.of_pieces(f"the tokenizer of {path.name}", pieces, scores)

"""llama2.c's model.bin: versions 0 (fp32, run.c), 1 (fp32 with a header) and 2 (Q8_0, runq.c), read and written.

Source of the layouts: karpathy/llama2.c, export.py (legacy_export, version1_export, version2_export), run.c and runq.c.
All is little-endian; weights are (out, in), a tensor's layers lie one after the other, and queries and keys turn in
neighbouring pairs, as in our weights.

version 0   seven int32: C, H, L, NH, NKV, v (negative: the head is not tied), max_t; then the tensors of ORDER_0, with
            cosines and sines (max_t, HS/2 each), which readers pass over, before the head
version 1   "ak42" as a uint32, 1, the seven int32, one byte: the head is tied; zeros up to 256 bytes; then ORDER_1
version 2   as 1 with 2 and, after the byte, int32 G; then the norms in fp32, and each layer's matrix as int8 values
            followed by fp32 scales, one for every G values in a row of the memory

A model has theta 10000 and epsilon 1e-5, which no file says. The tokenizer's file is read in bench/text/scored.py.

Groups of version 2 run on over the ends of rows where G does not divide a row's length, as in the file that export.py
makes of a model with 1376 hidden channels and G = 64. runq.c multiplies with wrong scales there. Here they are what the
file says: groups are cut to the largest size that divides G and every row, and each takes its scale along.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from bench.checkpoints import GROUP
from bench.checkpoints.state import named_model
from bench.checkpoints.tensors import new_file
from bench.cli import CannotGoOn, no_such
from reference import rope
from reference.models.llama2 import EPS, Llama2
from reference.models.model import Model

MAGIC = 0x616B3432
HEADER = 256  # bytes, of versions 1 and 2
VERSIONS = (0, 1, 2)
THETA = 10000.0  # its programs know no other
ORDER_0 = ("wte", "norm1", "wq", "wk", "wv", "wo", "norm2", "w1", "w2", "w3", "norm", "tables", "head")
ORDER_1 = ("norm1", "norm2", "norm", "wte", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "head")
NORMS = ("norm1", "norm2", "norm")
# A version 0 has no magic: with more than this it is another file.
MOST = dict(C=1 << 20, H=1 << 22, L=1 << 12, NH=1 << 12, NKV=1 << 12, v=1 << 24, max_t=1 << 24)

Weights = Mapping[str, torch.Tensor]
Quantised = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Head:
    """What a file says before its tensors. group: 0 but in version 2."""

    version: int
    model: Llama2
    group: int = 0

    @property
    def bytes(self) -> int:
        """Of the whole file."""
        size = HEADER if self.version else 28
        for part in ORDER_1 if self.version else ORDER_0:
            if part == "tables":
                size += 4 * self.model.max_t * self.model.head_size
                continue
            count = sum(rows for _, _, rows in places(self.model, part)) * row_of(self.model, part)
            quantised = self.version == 2 and part not in NORMS
            size += count + 4 * count // self.group if quantised else 4 * count
        return size


def row_of(model: Llama2, part: str) -> int:
    """Numbers in a row of a tensor."""
    return model.H if part == "w2" else model.C


def places(model: Llama2, part: str) -> Iterator[tuple[str, int, int]]:
    """(our name, its first row, rows) of one of its tensors, layer by layer; a norm is one row.
    None of the tables, nor of a tied head."""
    C, H, keys = model.C, model.H, model.NKV * model.head_size
    in_layers = {
        "norm1": ("norm1", 0, 1),
        "norm2": ("norm2", 0, 1),
        "wq": ("qkv", 0, C),
        "wk": ("qkv", C, keys),
        "wv": ("qkv", C + keys, keys),
        "wo": ("attproj", 0, C),
        "w1": ("gate_up", 0, H),
        "w3": ("gate_up", H, H),
        "w2": ("down", 0, C),
    }
    if part in in_layers:
        name, first, rows = in_layers[part]
        for i in range(model.L):
            yield f"h{i}.{name}.weight", first, rows
    elif part == "norm":
        yield "norm.weight", 0, 1
    elif part == "wte":
        yield "wte", 0, model.v
    elif part == "head" and not model.tied:
        yield "head.weight", 0, model.v


def views(model: Llama2, weights: Weights, part: str) -> Iterator[torch.Tensor]:
    """What `places` says, as (rows, numbers in a row) views into our tensors."""
    for name, first, rows in places(model, part):
        yield weights[name].view(-1, row_of(model, part))[first : first + rows]


# --- reading ---


def head_of(path: Path) -> Head:
    """What the file says of itself. CannotGoOn for what is no such file, or not as long as it must be."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER)
        size = path.stat().st_size
    except OSError as error:
        raise CannotGoOn(f"{path}: {error.strerror}" if path.is_file() else no_such(path, "file")) from None
    head = _head(path, raw)
    if size < head.bytes:
        raise CannotGoOn(f"{path}: cut off: {size:,} bytes, and {head.bytes:,} are promised")
    if size > head.bytes:
        raise CannotGoOn(f"{path}: {size - head.bytes:,} bytes more than the {head.bytes:,} that are promised")
    return head


def is_one(path: Path) -> bool:
    """Whether a file begins as one, whole or not."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER)
        _head(path, raw)
    except OSError:
        return False
    except CannotGoOn:
        return raw[:4] == struct.pack("<I", MAGIC)
    return True


def _head(path: Path, raw: bytes) -> Head:
    if len(raw) < 28:
        raise CannotGoOn(f"{path}: {len(raw)} bytes are no model of llama2.c's")
    if raw[:4] != struct.pack("<I", MAGIC):
        C, H, L, NH, NKV, v, max_t = struct.unpack_from("<7i", raw)
        return Head(0, _model(path, C, H, L, NH, NKV, abs(v), max_t, tied=v > 0))
    if len(raw) < HEADER:
        raise CannotGoOn(f"{path}: cut off in its header")
    version, *sizes, tied, group = struct.unpack_from("<i7iBi", raw, 4)
    if version not in VERSIONS[1:]:
        raise CannotGoOn(f"{path}: version {version} of llama2.c's model, this program reads 0, 1 and 2")
    if tied not in (0, 1):
        raise CannotGoOn(f"{path}: its header is damaged (whether the head is tied: {tied})")
    model = _model(path, *sizes, tied=bool(tied))
    if version == 1:
        return Head(1, model)
    for part in ORDER_1:
        for name, _, rows in places(model, part):
            if part not in NORMS and (group < 1 or rows * row_of(model, part) % group):
                raise CannotGoOn(f"{path}: groups of {group} do not divide {name}: its header is damaged")
    return Head(2, model, group)


def _model(path: Path, C: int, H: int, L: int, NH: int, NKV: int, v: int, max_t: int, *, tied: bool) -> Llama2:
    sizes = dict(C=C, H=H, L=L, NH=NH, NKV=NKV, v=v, max_t=max_t)
    impossible = any(not 0 < size <= MOST[name] for name, size in sizes.items())
    if impossible or C % NH or NH % NKV or C // NH % 2:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise CannotGoOn(f"{path}: no Llama has these sizes: {said}; not llama2.c's model, or damaged")
    return named_model(
        Llama2(f"llama2-{L}x{C}", C=C, H=H, L=L, NH=NH, NKV=NKV, v=v, max_t=max_t, tied=tied, theta=THETA, eps=EPS)
    )


def read_model(path: Path) -> tuple[Llama2, dict[str, torch.Tensor]]:
    """(model, fp32 weights by our names, rows of the vocabulary's padding zero); of version 2 what its int8 values
    stand for. CannotGoOn for what is no such file, whole."""
    head = head_of(path)
    model = head.model
    weights = {name: _empty(name, sizes) for name, sizes in model.parameter_shapes().items()}
    with path.open("rb") as file:
        file.seek(HEADER if head.version else 28)
        for part in ORDER_1 if head.version else ORDER_0:
            if part == "tables":
                file.seek(4 * model.max_t * model.head_size, 1)
            for into in views(model, weights, part):
                if head.version < 2 or part in NORMS:
                    into.copy_(_array(path, file, "<f4", into.numel()).view(into.shape))
                else:
                    values, scales = _group(path, file, head.group, into.numel())
                    into.copy_((values.float().view(-1, head.group) * scales[:, None]).view(into.shape))
    return model, weights


def read_quantised(path: Path) -> tuple[Llama2, dict[str, torch.Tensor], Quantised, int]:
    """Of a version 2: (model, fp32 norms, {matrix: (int8 values (rows, K), fp32 scales (rows, K/G))}, G), by our names.

    G divides every row: the file's own, or smaller where that does not (each scale then stands several times). Rows of
    the vocabulary's padding are zero with scales of one. CannotGoOn as `read_model`, and for another version.
    """
    head = head_of(path)
    if head.version != 2:
        raise CannotGoOn(f"{path}: version {head.version} of llama2.c's model is not quantised")
    model = head.model
    group = math.gcd(head.group, model.C, model.H)
    norms, quantised = {}, {}
    for name, sizes in model.parameter_shapes().items():
        if len(sizes) == 1:
            norms[name] = torch.empty(sizes)
        else:
            rows, K = sizes
            quantised[name] = torch.zeros(rows, K, dtype=torch.int8), torch.ones(rows, K // group)
    with path.open("rb") as file:
        file.seek(HEADER)
        for part in ORDER_1:
            for name, first, rows in places(model, part):
                if part in NORMS:
                    norms[name].copy_(_array(path, file, "<f4", model.C))
                    continue
                all_values, all_scales = quantised[name]
                values, scales = _group(path, file, head.group, rows * all_values.shape[1])
                all_values[first : first + rows] = values.view(rows, -1)
                all_scales[first : first + rows] = scales.repeat_interleave(head.group // group).view(rows, -1)
    return model, norms, quantised, group


def _empty(name: str, sizes: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(sizes) if name in ("wte", "head.weight") else torch.empty(sizes)


def _array(path: Path, file: BinaryIO, dtype: str, count: int) -> torch.Tensor:
    found = np.fromfile(file, dtype=dtype, count=count)
    if len(found) < count:
        raise CannotGoOn(f"{path}: cut off while it was read")
    return torch.from_numpy(found)


def _group(path: Path, file: BinaryIO, group: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The next `count` int8 values, and their scales."""
    values = _array(path, file, "i1", count)
    if values.min() < -127:
        raise CannotGoOn(f"{path}: a value of -128, and Q8_0 has none: damaged")
    scales = _array(path, file, "<f4", count // group)
    if not torch.isfinite(scales).all():
        raise CannotGoOn(f"{path}: a scale that is not finite: damaged")
    return values, scales


# --- writing ---


def need_llama2(model: Model, what: str) -> Llama2:
    if type(model) is not Llama2:  # a family that is derived from it computes something else
        raise CannotGoOn(f"{what} is a format for Llama 2, and {model.name} is of the family {model.family}")
    return model


def group_for(model: Llama2, group: int = GROUP) -> int:
    """`group` halved until it divides every row: no group runs over a row's end."""
    while model.C % group or model.H % group:
        group //= 2
    return group


def write_model(path: Path, model: Llama2, weights: Weights, version: int = 0, group: int = GROUP) -> Head:
    """Write a model in fp32 (versions 0 and 1), or int8 (2) with groups of `group_for(model, group)`; what was written.

    CannotGoOn where a file is there, or the format cannot say what the model is.
    """
    if version not in VERSIONS or group < 1:
        raise ValueError(f"version {version}, groups of {group}")
    if model.theta != THETA:
        raise CannotGoOn(f"{path}: llama2.c turns positions by theta {THETA:g}, {model.name} by {model.theta:g}")
    if model.eps != EPS:
        raise CannotGoOn(f"{path}: llama2.c's norms add {EPS:g}, {model.name}'s {model.eps:g}")
    head = Head(version, model, group_for(model, group) if version == 2 else 0)
    with new_file(path) as file:
        file.write(_header(head))
        for part in ORDER_1 if version else ORDER_0:
            if part == "tables":
                for table in rope.table(model.max_t, model.head_size, model.theta):
                    file.write(_raw(table))
            for rows in views(model, weights, part):
                if version < 2 or part in NORMS:
                    file.write(_raw(rows.float()))
                else:
                    values, scales = quantised(rows, head.group)
                    if not torch.isfinite(scales).all():
                        raise CannotGoOn(f"{path}: {part} of {model.name} is not finite everywhere, as Q8_0 must be")
                    file.write(_raw(values))
                    file.write(_raw(scales))
    return head


def quantised(rows: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Q8_0 (export.py, quantize_q80): int8 values round-half-even(x / scale) of the same shape, and fp32 scales
    max|x| / 127 of each `group` values (1 where all are zero)."""
    x = rows.float().reshape(-1, group)
    scales = x.abs().amax(1) / 127
    scales[scales == 0] = 1
    return (x / scales[:, None]).round().clamp(-127, 127).to(torch.int8).view(rows.shape), scales


def _header(head: Head) -> bytes:
    model = head.model
    sizes = (model.C, model.H, model.L, model.NH, model.NKV, model.v, model.max_t)
    if head.version == 0:
        return struct.pack("<7i", *sizes[:5], model.v if model.tied else -model.v, model.max_t)
    raw = struct.pack("<Ii7iB", MAGIC, head.version, *sizes, model.tied)
    if head.version == 2:
        raw += struct.pack("<i", head.group)
    return raw.ljust(HEADER, b"\0")


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()

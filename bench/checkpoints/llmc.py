"""llm.c's files: model, optimizer state, debug state. Read and written so that a file comes back byte for byte.

Source of the layouts: karpathy/llm.c, train_gpt2.py (write_model, write_state) and train_gpt2.cu (save_state,
write_checkpoint), at f1e2ace6. All is little-endian; every file begins with 256 int32, unused ones zero.

model.bin, model_STEP.bin    magic 20240326, version 3 (fp32) or 5 (bf16), max_t, v, L, NH, C, vp; then the 16 tensors
state_STEP_RANK.bin          magic 20240527, version 1; m, v and perhaps masters in fp32; the data loader's shuffle
DONE_STEP                    empty, and last: the step's files are whole
debug_state.bin              magic 20240327, version 2, B, T; x, y in int32; logits (B, T, v), loss, 16 gradients: fp32

A "tensor" is a parameter of all layers, one layer after the other; the 16 are `order(model)`. Its tokenizer's file is
read in bench/text/decoding.py, its token files in bench/text/shards.py.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from bench.checkpoints.state import State, describe, sized
from bench.checkpoints.tensors import new_file
from bench.cli import CannotGoOn, no_such
from bench.core.case import DTYPES
from reference.models.gpt2 import GPT2
from reference.models.model import Model

HEADER = 256  # int32
MODEL, STATE, DEBUG = 20240326, 20240527, 20240327  # magic numbers
VERSIONS = {"fp32": 3, "bf16": 5}
STATE_VERSION, DEBUG_VERSION = 1, 2
GENERATOR_BYTES = 2520  # of its Mersenne Twister: seed u64, left i32, next u32, 624 words, 2 constants
RNG_START = 13371337  # its rounding's generator before the first step, of rank 0
PARTS = ("ln1", "qkv", "attproj", "ln2", "fc", "fcproj")
DONE = re.compile(r"DONE_(\d{8,})")

Weights = Mapping[str, torch.Tensor]


def order(model: GPT2) -> list[list[str]]:
    """The 16 tensors of its files, each as our names of it, one a layer (or one)."""
    layers = [[f"h{i}.{part}.{kind}" for i in range(model.L)] for part in PARTS for kind in ("weight", "bias")]
    return [["wte"], ["wpe"], *layers, ["lnf.weight"], ["lnf.bias"]]


def need_gpt2(model: Model, what: str) -> GPT2:
    if type(model) is not GPT2:  # a family that is derived from it computes something else
        raise CannotGoOn(f"{what} is a format for GPT-2, and {model.name} is of the family {model.family}")
    return model


# --- bytes and tensors ---


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _write_named(file: BinaryIO, model: GPT2, named: Weights, dtype: str) -> None:
    for names in order(model):
        for name in names:
            file.write(_raw(named[name].to(DTYPES[dtype])))


def _named(model: GPT2, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views by our names into all parameters as one array, in its order."""
    shapes, found, at = model.parameter_shapes(), {}, 0
    for name in (name for names in order(model) for name in names):
        count = torch.Size(shapes[name]).numel()
        found[name] = flat[at : at + count].view(shapes[name])
        at += count
    return {name: found[name] for name in shapes}


def _flat(model: GPT2, named: Weights) -> np.ndarray:
    """(parameters,) fp32, in its order."""
    return np.concatenate([named[n].float().cpu().numpy().ravel() for names in order(model) for n in names])


class Reader:
    """A file that is read piece by piece. Raises CannotGoOn, naming the file, for another file, version or size."""

    def __init__(self, path: Path, what: str, magic: int, versions: Iterable[int]):
        self.path = path
        if not path.is_file():
            raise CannotGoOn(no_such(path, "file"))
        self.size, self.at = path.stat().st_size, 4 * HEADER
        self.header = np.fromfile(path, dtype="<i4", count=HEADER)
        if len(self.header) < HEADER or self.header[0] != magic:
            raise self.error(f"not llm.c's {what} (its magic is {magic})")
        if self.header[1] not in versions:
            known = " and ".join(map(str, versions))
            raise self.error(f"version {self.header[1]} of llm.c's {what}, this program reads {known}")
        self.file = path.open("rb")
        self.file.seek(self.at)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def error(self, why: str) -> CannotGoOn:
        return CannotGoOn(f"{self.path}: {why}")

    def array(self, dtype: str, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        self.need(size)
        self.at += size
        return np.fromfile(self.file, dtype=dtype, count=count)

    def need(self, size: int) -> None:
        """CannotGoOn unless so many bytes are left: before memory is taken for what a damaged header promises."""
        if self.at + size > self.size:
            raise self.error(f"cut off: {self.size:,} bytes, and {self.at + size:,} are promised")

    def end(self) -> None:
        """CannotGoOn where there is more."""
        if self.at != self.size:
            raise self.error(f"{self.size - self.at:,} bytes more than the {self.at:,} that are promised")


def _header(*entries: int) -> np.ndarray:
    header = np.zeros(HEADER, dtype="<i4")
    header[: len(entries)] = entries
    return header


# --- model ---


def read_model(path: Path) -> tuple[GPT2, str, dict[str, torch.Tensor]]:
    """(model, "fp32" or "bf16", weights by our names). CannotGoOn for what is no such file, whole."""
    with Reader(path, "model", MODEL, VERSIONS.values()) as file:
        _, version, max_t, v, L, NH, C, vp = map(int, file.header[:8])
        if min(max_t, v, L, NH, C) < 1 or C % NH:
            raise file.error(f"no GPT-2 has these sizes: max_t {max_t}, v {v}, L {L}, NH {NH}, C {C}")
        model = sized(max_t=max_t, v=v, L=L, NH=NH, C=C)
        if vp != model.vp:
            raise file.error(f"its vocabulary of {v} is padded to {vp}, and not to {model.vp}")
        # before a damaged header's layers are listed
        count = (vp + max_t) * C + L * (12 * C * C + 13 * C) + 2 * C
        file.need(count * (2 if version == VERSIONS["bf16"] else 4))
        dtype = next(name for name, number in VERSIONS.items() if number == version)
        raw = torch.from_numpy(file.array("<i2" if dtype == "bf16" else "<f4", model.parameters))
        file.end()
    return model, dtype, _named(model, raw.view(DTYPES[dtype]))


def write_model(path: Path, model: GPT2, dtype: str, weights: Weights) -> None:
    """Write a model in "fp32" or "bf16". CannotGoOn where a file is there, or for another dtype."""
    if dtype not in VERSIONS:
        raise CannotGoOn(f"{path}: llm.c's files are in {' or '.join(VERSIONS)}, not in {dtype}")
    with new_file(path) as file:
        sizes = (model.max_t, model.v, model.L, model.NH, model.C, model.vp)
        file.write(_header(MODEL, VERSIONS[dtype], *sizes).tobytes())
        _write_named(file, model, weights, dtype)


# --- optimizer state ---


@dataclass(frozen=True)
class Shuffle:
    """Where its data loader is in an epoch: order of shards, of samples in the one that is read, its generator."""

    shards: np.ndarray  # int32
    samples: np.ndarray  # int32
    generator: bytes


@dataclass(frozen=True)
class RankState:
    """One state_STEP_RANK.bin. m, v, masters: fp32 (n,), n all parameters or, with ZeRO stage 1, a rank's part."""

    step: int
    processes: int
    rank: int
    rng: int
    rng_last_update: int
    shard: int  # the data's, and the sample in it
    sample: int
    m: np.ndarray
    v: np.ndarray
    masters: np.ndarray | None
    shuffle: Shuffle | None


def read_state(path: Path, parameters: int) -> RankState:
    """A rank's optimizer state, of a model with so many parameters. CannotGoOn for what is no such file, whole."""
    with Reader(path, "optimizer state", STATE, [STATE_VERSION]) as file:
        h = file.header
        processes, has_masters, shuffled = int(h[2]), int(h[4]), int(h[5])
        if not 0 <= h[3] < processes or has_masters not in (0, 1) or shuffled not in (0, 1) or h[10] < 0:
            raise file.error("its header is damaged")
        wide = h.tobytes()
        u64 = {at: int.from_bytes(wide[4 * at : 4 * at + 8], "little") for at in (20, 22, 30, 32)}
        rng, rng_last_update, shard, sample = u64.values()
        arrays, body = 2 + has_masters, file.at
        for count in sorted({parameters, parameters // processes}, reverse=True):
            # The header does not say whether the optimizer is sharded: with one of the two the file ends where it must.
            file.at = body
            file.file.seek(body)
            try:
                m, v = (file.array("<f4", count) for _ in range(2))
                masters = file.array("<f4", count) if has_masters else None
                shuffle = _read_shuffle(file) if shuffled else None
            except CannotGoOn:
                continue
            if file.at == file.size:
                break
        else:
            raise file.error(
                f"{file.size:,} bytes do not hold {arrays} arrays of {parameters:,} numbers, nor a share of them for "
                f"each of {processes} processes: cut off, or of another model"
            )
        file.end()
    return RankState(int(h[10]), processes, int(h[3]), rng, rng_last_update, shard, sample, m, v, masters, shuffle)


def _read_shuffle(file: Reader) -> Shuffle:
    def counted() -> np.ndarray:
        return file.array("<i4", int(file.array("<u8", 1)[0]))

    shards, samples = counted(), counted()
    return Shuffle(shards, samples, file.array("u1", GENERATOR_BYTES).tobytes())


def write_state(path: Path, state: RankState) -> None:
    """Write a rank's optimizer state. CannotGoOn where a file is there."""
    header = _header(
        STATE,
        STATE_VERSION,
        state.processes,
        state.rank,
        int(state.masters is not None),
        int(state.shuffle is not None),
    )
    header[10] = state.step
    for at, value in ((20, state.rng), (22, state.rng_last_update), (30, state.shard), (32, state.sample)):
        header[at : at + 2] = np.frombuffer(value.to_bytes(8, "little"), dtype="<i4")
    with new_file(path) as file:
        file.write(header.tobytes())
        for array in (state.m, state.v, state.masters):
            if array is not None:
                file.write(array.astype("<f4", copy=False).tobytes())
        if state.shuffle:
            for indices in (state.shuffle.shards, state.shuffle.samples):
                file.write(len(indices).to_bytes(8, "little") + indices.astype("<i4", copy=False).tobytes())
            file.write(state.shuffle.generator)


# --- a run's folder ---


def newest_step(folder: Path) -> int | None:
    """The newest step whose files are said to be whole."""
    steps = [int(m[1]) for path in folder.iterdir() if (m := DONE.fullmatch(path.name))] if folder.is_dir() else []
    return max(steps, default=None)


def read_run(folder: Path) -> State:
    """The newest whole step of llm.c's output folder, whatever its number of processes.

    Its generators and the place in the data of rank 0 are in rest["llmc"]. CannotGoOn where there is none.
    """
    step = newest_step(folder)
    if step is None:
        raise CannotGoOn(f"{folder}: no whole checkpoint of llm.c (no DONE_*)")
    model, dtype, weights = read_model(folder / f"model_{step:08d}.bin")
    ranks = list(_ranks(folder, step, model))
    first = ranks[0]
    masters = None if first.masters is None or dtype == "fp32" else _whole(model, [r.masters for r in ranks])
    place = dict(rng=first.rng, rng_last_update=first.rng_last_update, shard=first.shard, sample=first.sample)
    return State(
        step=step,
        model=describe(model),
        dtype=dtype,
        weights=weights,
        masters=masters,
        m=_whole(model, [r.m for r in ranks]),
        v=_whole(model, [r.v for r in ranks]),
        rest={"updates": step, "llmc": place},
    )


def _ranks(folder: Path, step: int, model: GPT2) -> Iterator[RankState]:
    rank, processes = 0, 1
    while rank < processes:
        path = folder / f"state_{step:08d}_{rank:05d}.bin"
        found = read_state(path, model.parameters)
        if rank == 0:
            processes = found.processes
        if (found.step, found.rank, found.processes) != (step, rank, processes):
            raise CannotGoOn(f"{path}: it is of step {found.step}, rank {found.rank} of {found.processes}")
        yield found
        rank += 1


def _whole(model: GPT2, parts: list[Any]) -> dict[str, torch.Tensor]:
    """Of every rank's numbers: all the same, or with ZeRO stage 1 its share of each layer of each tensor."""
    if len(parts[0]) == model.parameters:
        return _named(model, torch.from_numpy(parts[0]))
    shapes, at, found = model.parameter_shapes(), 0, {}
    for name in (name for names in order(model) for name in names):
        share = torch.Size(shapes[name]).numel() // len(parts)
        joined = np.concatenate([part[at : at + share] for part in parts])
        if joined.size != torch.Size(shapes[name]).numel():
            raise CannotGoOn(f"{name} cannot be shared by {len(parts)} processes")
        found[name] = torch.from_numpy(joined).view(shapes[name])
        at += share
    return {name: found[name] for name in shapes}


def write_run(folder: Path, state: State, model: GPT2) -> Path:
    """Write a step as llm.c's output folder of one process, for its -y 1; the marker last. Nothing is overwritten.

    Its data loader then starts at the data's beginning, in order, unless rest["llmc"] says where it was.
    """
    known = {"rng": RNG_START, "rng_last_update": RNG_START, "shard": 0, "sample": 0} | state.rest.get("llmc", {})
    if not state.m:
        raise CannotGoOn(f"{folder}: only weights are known, and no moments: write a model .bin")
    write_model(folder / f"model_{state.step:08d}.bin", model, state.dtype, state.weights)
    rank = RankState(
        step=state.step,
        processes=1,
        rank=0,
        m=_flat(model, state.m),
        v=_flat(model, state.v),
        masters=None if state.masters is None else _flat(model, state.masters),
        shuffle=None,
        **{key: known[key] for key in ("rng", "rng_last_update", "shard", "sample")},
    )
    write_state(folder / f"state_{state.step:08d}_00000.bin", rank)
    with new_file(folder / f"DONE_{state.step:08d}"):
        pass
    return folder


# --- debug state ---


@dataclass(frozen=True)
class DebugState:
    """One batch and what PyTorch made of it: what llm.c's tests compare with.

    x, y: (B, T) int64. logits: (B, T, v) fp32. grads: fp32, by our names, wte's with its padding.
    """

    x: torch.Tensor
    y: torch.Tensor
    logits: torch.Tensor
    loss: float
    grads: Weights


def read_debug_state(path: Path, model: GPT2) -> DebugState:
    """The debug state of a model. CannotGoOn for what is no such file, whole, or of another model."""
    with Reader(path, "debug state", DEBUG, [DEBUG_VERSION]) as file:
        B, T = map(int, file.header[2:4])
        if not (B > 0 and 0 < T <= model.max_t):
            raise file.error(f"B {B} and T {T} are no batch of {model.name}")
        x, y = (torch.from_numpy(file.array("<i4", B * T)).view(B, T).long() for _ in range(2))
        logits = torch.from_numpy(file.array("<f4", B * T * model.v)).view(B, T, model.v)
        loss = float(file.array("<f4", 1)[0])
        grads = _named(model, torch.from_numpy(file.array("<f4", model.parameters)))
        file.end()
    return DebugState(x, y, logits, loss, grads)


def write_debug_state(path: Path, model: GPT2, state: DebugState) -> None:
    """Write a debug state. CannotGoOn where a file is there."""
    with new_file(path) as file:
        file.write(_header(DEBUG, DEBUG_VERSION, *state.x.shape).tobytes())
        for tensor in (state.x.int(), state.y.int(), state.logits.float(), torch.tensor(state.loss)):
            file.write(_raw(tensor))
        _write_named(file, model, state.grads, "fp32")

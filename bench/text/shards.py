"""Shards of tokens on disk, as llm.c writes them; read, checked and cut into batches."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import cli
from bench.core.files import put
from bench.text.tokenizer import VOCABULARY, DataError

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
HEADER_BYTES = 4 * HEADER_INTS
CHECKED_AT_ONCE = 1 << 20  # tokens
OTHER_MAGICS = {
    20240326: "a model checkpoint",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240522: "an evaluation set",
    20240527: "an optimizer state",
    20240801: "a uint32 data set for Llama 3",
    20240803: "a Llama 3 checkpoint",
}
Batch = tuple[np.ndarray, np.ndarray]  # tokens, targets: (B, T) int64
AGAIN = "write it again with `python -m bench.data TEXT --out DIR`"


# ---- reading ---------------------------------------------------------------------------------------------------------


class EndToEnd:
    """Several shards as one array that is read by arrays of places, and never copied into memory as a whole."""

    def __init__(self, shards: list[np.ndarray]):
        self.shards = shards
        self.ends = np.cumsum([len(s) for s in shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        found = np.empty(places.shape, dtype=np.uint16)
        of = np.searchsorted(self.ends, places, side="right")
        for i in np.unique(of):
            here = of == i
            found[here] = self.shards[i][places[here] - self.ends[i] + len(self.shards[i])]
        return found


Tokens = np.ndarray | EndToEnd


def open_tokens(path: Path | str, vocabulary: int = VOCABULARY) -> Tokens:
    """The tokens of a .bin file, or of all training shards in a folder (see `open_shard`)."""
    path = Path(path)
    files = training_shards(path) if path.is_dir() else [path]
    shards = [open_shard(file, vocabulary) for file in files]
    return shards[0] if len(shards) == 1 else EndToEnd(shards)


def open_shard(path: Path, vocabulary: int = VOCABULARY) -> np.ndarray:
    """The tokens of a .bin file as a read-only uint16 array (N,), read from the disk where it is looked at.

    Raises DataError, naming the file, for a missing or empty file, a bad header, a size the header does not promise,
    an odd length, and a token that is not below `vocabulary`.
    """
    start, _ = layout(path)
    check_tokens(path, start, vocabulary)
    return np.memmap(path, dtype="<u2", mode="r", offset=start)


def layout(path: Path) -> tuple[int, int]:
    """Where the tokens of a .bin file begin, in bytes, and how many there are; from its header and its size alone.

    Raises DataError as `open_shard` does, but for the tokens themselves (`check_tokens`).
    """
    if not path.is_file():
        raise DataError(cli.no_such(path, "file", AGAIN))
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty; {AGAIN}")
    start = HEADER_BYTES if _has_header(path, size) else 0
    if (size - start) % 2:
        raise DataError(f"{path}: odd length of {size:,} bytes, so not uint16 tokens; it was cut off, {AGAIN}")
    if size == start:
        raise DataError(f"{path}: a header and no tokens; {AGAIN}")
    return start, (size - start) // 2


def check_tokens(path: Path, start: int, vocabulary: int) -> None:
    """DataError where a token of a .bin file, which begin at byte `start`, is not below `vocabulary`."""
    largest, at = _largest(path, start)
    if largest >= vocabulary:
        raise DataError(
            f"{path}: token {largest} at position {at:,}, but the vocabulary has {vocabulary:,}; "
            f"the file is damaged or was made for another vocabulary, {AGAIN}"
        )


def _largest(path: Path, start: int) -> tuple[int, int]:
    """The largest token of a file and its place. Read piece by piece: what is looked at in a map stays in memory, and
    every contestant would be charged for the whole data set."""
    largest, at, done = -1, 0, 0
    with path.open("rb") as file:
        file.seek(start)
        while len(piece := np.fromfile(file, dtype="<u2", count=CHECKED_AT_ONCE)):
            if (found := int(piece.max())) > largest:
                largest, at = found, done + int(piece.argmax())
            done += len(piece)
    return largest, at


def training_shards(folder: Path) -> list[Path]:
    """The .bin files to train on: those named train, else those not named val."""
    shards = _shards(folder)
    chosen = [s for s in shards if "train" in s.name] or [s for s in shards if "val" not in s.name]
    if not chosen:
        raise DataError(f"{folder}: no training shards (*train*.bin); {AGAIN}")
    return chosen


def validation_shards(folder: Path) -> list[Path]:
    """The .bin files to validate on: those named val."""
    chosen = [s for s in _shards(folder) if "val" in s.name]
    if not chosen:
        raise DataError(f"{folder}: no validation shards (*val*.bin); {AGAIN}")
    return chosen


def _shards(folder: Path) -> list[Path]:
    """The .bin files of a folder but for llm.c's other files, of which a tokenizer or an evaluation may lie there."""
    return [f for f in sorted(folder.glob("*.bin")) if _magic(f) not in OTHER_MAGICS]


def _magic(path: Path) -> int:
    head = np.fromfile(path, dtype="<i4", count=1).tolist() if path.is_file() else []
    return head[0] if head else 0


def batches(tokens: Tokens, B: int, T: int, seed: int, skip: int = 0) -> Iterator[Batch]:
    """Endless (x, y), (B, T) each: B windows of T + 1 tokens at random places, y one token after x.

    The places are drawn uniformly by a generator seeded with `seed`: the same arguments give the same batches, and
    `skip` begins after so many of them.
    """
    places = len(tokens) - T
    if places < 1:
        raise DataError(
            f"{cli.several(len(tokens), 'token')}, too few for sequences of {T}; take more text or a shorter --seq"
        )
    rng = np.random.default_rng(seed)
    window = np.arange(T + 1)

    def draw() -> Iterator[Batch]:
        for _ in range(skip):
            rng.integers(places, size=(B, 1))
        while True:
            rows = np.asarray(tokens[rng.integers(places, size=(B, 1)) + window], dtype=np.int64)
            yield rows[:, :-1].copy(), rows[:, 1:].copy()

    return draw()


@dataclass(frozen=True)
class Batches:
    """The micro-batches of steps, made where and when they are asked for: the same in every process, by step number.

    Iterating gives one list of `accumulation` micro-batches a step, of `steps` in turn, and the same ones again each
    time. Raises DataError at once for tokens that cannot be read, or are too few.
    """

    path: Path
    B: int
    T: int
    accumulation: int
    seed: int
    steps: range = range(0)
    vocabulary: int = VOCABULARY  # every token is below it

    def __post_init__(self) -> None:
        self._source()

    def of(self, steps: range) -> "Batches":
        return replace(self, steps=steps)

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of one step."""
        return next(iter(self.of(range(number, number + 1))))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Batch]]:
        source = self._source()
        for _ in self.steps:
            yield [next(source) for _ in range(self.accumulation)]

    def _source(self) -> Iterator[Batch]:
        return batches(
            _opened(self.path, self.vocabulary), self.B, self.T, self.seed, self.steps.start * self.accumulation
        )


@functools.lru_cache(maxsize=1)
def _opened(path: Path, vocabulary: int) -> Tokens:
    """Opened once a process, for opening looks at every token."""
    return open_tokens(path, vocabulary)


def _has_header(path: Path, size: int) -> bool:
    """True for llm.c's header, False for nanoGPT's headerless tokens; DataError for any other header."""
    head = np.fromfile(path, dtype="<i4", count=min(HEADER_INTS, size // 4))
    if len(head) == 0:
        return False
    magic = int(head[0])
    if magic in OTHER_MAGICS:
        raise DataError(f"{path}: this is {OTHER_MAGICS[magic]} of llm.c, not uint16 tokens; {AGAIN}")
    if magic != MAGIC:
        if len(head) == HEADER_INTS and not head[3:].any():  # zeros to the end of a header: no text looks like this
            raise DataError(f"{path}: bad magic {magic} in the header, expected {MAGIC}; {AGAIN}")
        return False
    if len(head) < HEADER_INTS:
        raise DataError(f"{path}: cut off inside the header ({size} of {HEADER_BYTES} bytes); {AGAIN}")
    if head[1] != VERSION:
        raise DataError(f"{path}: version {head[1]} of the format, this program reads version {VERSION}; {AGAIN}")
    if HEADER_BYTES + 2 * int(head[2]) != size:
        raise DataError(
            f"{path}: the header promises {head[2]:,} tokens, the file holds {(size - HEADER_BYTES) / 2:,.15g}; "
            f"it was cut off or overwritten, copy or {AGAIN}"
        )
    return True


def write_tokens(path: Path, tokens: np.ndarray) -> None:
    """Write tokens (N,), uint16, as an llm.c shard."""
    if len(tokens) >= 2**31:
        raise DataError(f"{path}: {len(tokens):,} tokens do not fit a shard (its count is an int32); split the text")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    put(path, header.tobytes() + tokens.astype("<u2").tobytes())

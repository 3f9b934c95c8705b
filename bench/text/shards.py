"""Shards of tokens on disk, as llm.c writes them; read, checked and cut into batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.core.files import put
from bench.text.tokenizer import VOCABULARY, DataError

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
HEADER_BYTES = 4 * HEADER_INTS
OTHER_MAGICS = {
    20240326: "a model checkpoint",
    20240327: "a debug state",
    20240328: "a tokenizer",
    20240522: "an evaluation set",
    20240527: "an optimizer state",
    20240801: "a uint32 data set for Llama 3",
    20240803: "a Llama 3 checkpoint",
}
AGAIN = "write it again with `python -m bench.data TEXT --out DIR`"


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_tokens(path: Path | str, vocabulary: int = VOCABULARY) -> np.ndarray:
    """The tokens of a .bin file, or of all training shards in a folder, as a read-only uint16 array (N,).

    Raises DataError, naming the file, for a missing or empty file, a bad header, a size the header does not promise,
    an odd length, and a token that is not below `vocabulary`.
    """
    path = Path(path)
    if path.is_dir():
        shards = [open_tokens(shard, vocabulary) for shard in training_shards(path)]
        return shards[0] if len(shards) == 1 else np.concatenate(shards)
    if not path.is_file():
        raise DataError(f"{path}: no such file; {AGAIN}")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty; {AGAIN}")
    start = HEADER_BYTES if _has_header(path, size) else 0
    if (size - start) % 2:
        raise DataError(f"{path}: odd length of {size:,} bytes, so not uint16 tokens; it was cut off, {AGAIN}")
    if size == start:
        raise DataError(f"{path}: a header and no tokens; {AGAIN}")
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=start)
    largest = int(tokens.max())
    if largest >= vocabulary:
        at = int(tokens.argmax())
        raise DataError(
            f"{path}: token {largest} at position {at:,}, but the vocabulary has {vocabulary:,}; "
            f"the file is damaged or was made for another vocabulary, {AGAIN}"
        )
    return tokens


def training_shards(folder: Path) -> list[Path]:
    """The .bin files to train on: those named train, else those not named val."""
    shards = sorted(folder.glob("*.bin"))
    chosen = [s for s in shards if "train" in s.name] or [s for s in shards if "val" not in s.name]
    if not chosen:
        raise DataError(f"{folder}: no training shards (*train*.bin); {AGAIN}")
    return chosen


def batches(tokens: np.ndarray, B: int, T: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless (x, y), int64 (B, T) each: B windows of T + 1 tokens at random places, y one token after x.

    The places are drawn uniformly by a generator seeded with `seed`: the same arguments give the same batches.
    """
    places = len(tokens) - T
    if places < 1:
        raise DataError(f"{len(tokens):,} tokens are too few for sequences of {T}; take more text or a shorter --seq")
    rng = np.random.default_rng(seed)
    window = np.arange(T + 1)

    def draw() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            rows = np.asarray(tokens[rng.integers(places, size=(B, 1)) + window], dtype=np.int64)
            yield rows[:, :-1].copy(), rows[:, 1:].copy()

    return draw()


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

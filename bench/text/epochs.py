"""Training data as epochs: every window of every shard once, in a new order each time, by the number of the step alone.

A window is T + 1 tokens of one shard, and its targets are the last T of them. Windows lie end to end, so that a token
is a target once an epoch. What is left of a shard, less than T tokens, is left out at its ends, each epoch elsewhere.

The order is a function of seed, epoch and place: shards in turn, and within each a permutation that is computed
and never stored. So a run goes on at any step without anything remembered of the steps before, and the windows of a
step do not depend on how it is cut into ranks and micro-batches.

Tokens are read from the file where they lie, a window at a time. They are not mapped: looking at a map of a file that
shrank ends the process without a word, and a read says so.
"""

import functools
import glob
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import cli
from bench.text.corpus import cache_dir, dataset
from bench.text.shards import (
    AGAIN,
    Batch,
    check_tokens,
    layout,
    training_shards,
    validation_shards,
)
from bench.text.tokenizer import VOCABULARY, DataError

ROUNDS = 8  # of the permutation; four are enough to look random (Luby and Rackoff 1988), small halves need more
PROBES = 16  # places of a shard that go into its digest
PROBE_BYTES = 4096
AHEAD = 2  # steps that are read before they are asked for

# ---- shards ----------------------------------------------------------------------------------------------------------


def find_shards(pattern: str | Path | None, part: str = "train", kind: str = "gpt2") -> list[Path]:
    """The shards that `--data` means, sorted by their paths.

    `pattern` is a .bin file, a glob of them ("DIR/*_train_*.bin"), a folder of shards, a text or a folder of texts, or
    None for the default data set; the last two are encoded into the cache, in tokens of this kind. Of a folder `part`
    are those named train or val (`training_shards`, `validation_shards`); a glob and a file mean what they name. Raises
    DataError where nothing is found.
    """
    if pattern is not None and glob.has_magic(str(pattern)) and not Path(pattern).exists():
        found = sorted(Path(f) for f in glob.glob(str(pattern), recursive=True))
        if not found:
            raise DataError(f"{pattern}: no file matches; quote the pattern, or {AGAIN}")
        return found
    if pattern is not None and Path(pattern).suffix == ".bin" and not Path(pattern).is_dir():
        return [Path(pattern)]
    source = dataset(pattern, kind)
    folder = source if source.is_dir() else source.parent
    return validation_shards(folder) if part == "val" else training_shards(folder)


def find_validation(val: str | Path | None, data: str | Path | None, kind: str = "gpt2") -> list[Path]:
    """The shards that `--val` means; without it those that belong to `--data`: named val, in the same folder.

    Raises DataError where there are none: what is trained on is never taken to validate with.
    """
    if val is not None:
        return find_shards(val, "val", kind)
    train = find_shards(data, kind=kind)
    return validation_shards(train[0].parent)


@dataclass(frozen=True)
class Shard:
    """A .bin file that was looked at: where its tokens begin, in bytes, and how many there are."""

    path: Path
    start: int
    tokens: int

    def read(self, places: np.ndarray, length: int) -> np.ndarray:
        """The tokens (N, length) from each of `places` (N,) on. DataError where they are not there any more."""
        rows = np.empty((len(places), length), dtype="<u2")
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for row, place in zip(rows, places.tolist(), strict=True):
                    self._fill(row, handle, place)
            finally:
                os.close(handle)
        except FileNotFoundError:
            raise DataError(f"{self.path}: the file has disappeared while training read from it; put it back") from None
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read any more: {error.strerror}") from None
        return rows

    def _fill(self, row: np.ndarray, handle: int, place: int) -> None:
        into, at = row.view(np.uint8).data, self.start + 2 * place
        while into:
            got = os.preadv(handle, [into], at)
            if got == 0:
                size = os.fstat(handle).st_size
                raise DataError(
                    f"{self.path}: the file shrank while training read from it: {size:,} bytes are left of "
                    f"{self.start + 2 * self.tokens:,}; put it back, or {AGAIN}"
                )
            into, at = into[got:], at + got

    def digest(self) -> str:
        """Twelve digits of what lies at some places of the file: other data of the same length have others."""
        end = self.start + 2 * self.tokens
        last = max(end - PROBE_BYTES, 0)
        total = hashlib.sha256()
        with self.path.open("rb", buffering=0) as file:
            for probe in range(PROBES + 1):
                total.update(os.pread(file.fileno(), PROBE_BYTES, last * probe // PROBES))
        return total.hexdigest()[:12]


def look_at(path: Path, vocabulary: int = VOCABULARY, tokens_too: bool = True) -> Shard:
    """A shard whose header and size hold, and with `tokens_too` every token; else DataError (see `open_shard`)."""
    start, count = layout(path)
    if tokens_too:
        found = path.stat()
        _tokens_hold(path, start, vocabulary, found.st_size, found.st_mtime_ns)
    return Shard(path, start, count)


@functools.lru_cache(maxsize=4096)
def _tokens_hold(path: Path, start: int, vocabulary: int, size: int, changed_ns: int) -> None:
    """Once for a file as it is, because validation shards are opened again and again."""
    check_tokens(path, start, vocabulary)


# ---- the order -------------------------------------------------------------------------------------------------------


def permuted(places: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a permutation of 0 … n-1 that `key` chooses sends each of `places` (int64). No memory but theirs is taken.

    A Feistel network (Luby and Rackoff 1988) over the next power of four; what falls outside goes through it again
    until it is inside (cycle walking; Black and Rogaway 2002), which keeps it a permutation.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _mix(np.uint64(key) + np.arange(1, ROUNDS + 1, dtype=np.uint64))
    found = places.astype(np.uint64)
    outside = np.ones(found.shape, dtype=bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for each in keys:
            left, right = right, left ^ (_mix(right ^ each) & mask)
        found[outside] = left << half | right
        outside = found >= n
    return found.astype(np.int64)


def _mix(bits: np.ndarray) -> np.ndarray:
    """64 bits of which each depends on all that went in: SplitMix64's last steps (Steele, Lea and Flood 2014)."""
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)


def _key(*numbers: int) -> int:
    """63 bits for a tuple of numbers, the same on every machine and with every version of NumPy."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little") >> 1


@functools.lru_cache(maxsize=8)
def _epoch(seed: int, epoch: int, lengths: tuple[int, ...], T: int, shuffle: bool) -> tuple[np.ndarray, ...]:
    """An epoch's shards in their turn; where each one's windows end in it; the first token of each one's first window.

    Of shards with `lengths` tokens; all (shards,), the last two in the order of the first.
    """
    order = list(range(len(lengths)))
    if shuffle:
        order.sort(key=lambda shard: _key(seed, epoch, shard))
    ends = np.cumsum([_windows(lengths[s], T) for s in order])
    spare = [max(lengths[s] - 1, 0) % T if shuffle else 0 for s in order]
    first = [_key(seed, epoch, s, 1) % (left + 1) for s, left in zip(order, spare, strict=True)]
    return np.array(order), ends, np.array(first)


def _windows(tokens: int, T: int) -> int:
    return max(tokens - 1, 0) // T


class Epochs:
    """The micro-batches of each step of a training run, for one rank of several.

    `shards` are .bin files; all ranks must have the same ones. A step takes B × `micro_batches` × `ranks` windows, the
    next ones of a sequence of epochs without a gap: a step may end one epoch and begin the next. With `shuffle` off
    shards and windows come in their order, each epoch the same.

    Every shard's header and size is checked at once, and every token of it by one of the ranks; what a step reads is
    checked again. Raises DataError for a shard that does not hold, for fewer tokens than one window has, and in `step`
    for shards that disappeared, shrank or changed since.
    """

    def __init__(
        self,
        shards: list[Path],
        B: int,
        T: int,
        micro_batches: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        shuffle: bool = True,
        vocabulary: int = VOCABULARY,
    ):
        if not shards:
            raise DataError(f"no shards to read; {AGAIN}")
        self.B, self.T, self.micro_batches, self.seed = B, T, micro_batches, seed
        self.rank, self.ranks, self.shuffle, self.vocabulary = rank, ranks, shuffle, vocabulary
        self.shards = [look_at(path, vocabulary, n % ranks == rank) for n, path in enumerate(shards)]
        self._lengths = tuple(shard.tokens for shard in self.shards)
        self.windows = sum(_windows(tokens, T) for tokens in self._lengths)
        if self.windows == 0:
            theirs = f"{shards[0]}{' and others' * (len(shards) > 1)}"
            whose = "the text" if cache_dir() in shards[0].parents else theirs  # the cache's own were made of it
            raise DataError(
                f"{whose}: {cli.several(self.tokens, 'token')}, too few for sequences of {T}; take more text or a "
                "shorter --seq"
            )

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(self._lengths)

    @property
    def windows_per_step(self) -> int:
        """Windows that all ranks together take in a step."""
        return self.B * self.micro_batches * self.ranks

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps in an epoch; 1 where a step takes more than one. What is left over begins the next epoch."""
        return max(1, self.windows // self.windows_per_step)

    def epoch(self, step: int) -> float:
        """Epochs that are over when step number `step`, counted from 0, begins."""
        return step * self.windows_per_step / self.windows

    def identity(self) -> dict:
        """What the order of the windows hangs on, for JSON: equal ones give equal windows, step for step.

        Ranks and micro-batches are not in it; how many windows a step takes is. Of a shard its name and not its folder.
        """
        return {
            "shards": [[shard.path.name, shard.tokens, shard.digest()] for shard in self.shards],
            "T": self.T,
            "windows_per_step": self.windows_per_step,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def step(self, number: int) -> list[Batch]:
        """This rank's micro-batches (x, y) of one step, counted from 0: (B, T) int64 each, y one token after x.

        Micro-batch m of rank r has the step's windows from (m · ranks + r) · B on.
        """
        return self._batches(number, np.arange(self.micro_batches) * self.ranks + self.rank)

    def whole(self, number: int) -> list[Batch]:
        """All ranks' micro-batches of one step."""
        return self._batches(number, np.arange(self.micro_batches * self.ranks))

    def _batches(self, number: int, turns: np.ndarray) -> list[Batch]:
        if number < 0:
            raise ValueError(f"there is no step {number}")
        places = number * self.windows_per_step + (turns[:, None] * self.B + np.arange(self.B)).ravel()
        rows = self._read(places).reshape(len(turns), self.B, self.T + 1)
        return [(batch[:, :-1].copy(), batch[:, 1:].copy()) for batch in rows]

    def _read(self, places: np.ndarray) -> np.ndarray:
        """The windows (N, T + 1), int64, at `places` (N,) of the endless sequence."""
        rows = np.empty((len(places), self.T + 1), dtype=np.int64)
        epochs, within = np.divmod(places, self.windows)
        for epoch in np.unique(epochs).tolist():
            order, ends, firsts = _epoch(self.seed, epoch, self._lengths, self.T, self.shuffle)
            turns = np.searchsorted(ends, within, side="right")
            for turn in np.unique(turns[epochs == epoch]).tolist():
                here = (epochs == epoch) & (turns == turn)
                number = int(order[turn])
                count = _windows(self._lengths[number], self.T)
                window = within[here] - (ends[turn] - count)
                if self.shuffle:
                    window = permuted(window, count, _key(self.seed, epoch, number, 0))
                rows[here] = self._of(number, firsts[turn] + window * self.T)
        return rows

    def _of(self, number: int, places: np.ndarray) -> np.ndarray:
        shard = self.shards[number]
        rows = shard.read(places, self.T + 1)
        if (largest := int(rows.max())) >= self.vocabulary:
            raise DataError(
                f"{shard.path}: token {largest}, but the vocabulary has {self.vocabulary:,}; the file was "
                f"changed while training read from it, or is another one here than where it was checked; {AGAIN}"
            )
        return rows


def in_order(
    shards: list[Path],
    B: int,
    T: int,
    limit: int | None = None,
    rank: int = 0,
    ranks: int = 1,
    vocabulary: int = VOCABULARY,
) -> Iterator[Batch]:
    """The batches (x, y), (B, T) each, of validation shards, in their order and each window once; at most `limit`.

    Several ranks have turns, and all the same number of them; `limit` counts those of one rank. What does not fill a
    batch of every rank is left out. Raises DataError at once as `Epochs` does, and for fewer windows than that.
    """
    windows = Epochs(shards, B, T, 1, 0, rank, ranks, shuffle=False, vocabulary=vocabulary)
    whole = windows.windows // windows.windows_per_step
    if whole == 0:
        raise DataError(
            f"{shards[0]}{' and others' * (len(shards) > 1)}: {windows.tokens:,} tokens are too few for {B * ranks} "
            f"sequences of {T}; take more text for validation, or a smaller batch"
        )
    return (windows.step(number)[0] for number in range(whole if limit is None else min(limit, whole)))


class Ahead:
    """The steps of `Epochs` from `first_step` on, one after the other, read by other threads before they are asked for.

    Iterate over it, or call next(). What reading raises is raised where the step is asked for. `close` it, or use it in
    a `with`: it ends the threads, and then there is no further step.
    """

    def __init__(self, epochs: Epochs, first_step: int = 0, threads: int = 1, depth: int = AHEAD):
        self._epochs, self._next = epochs, first_step
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="data")
        self._steps: deque[Future[list[Batch]]] = deque()
        for _ in range(max(depth, threads)):
            self._ask()

    def _ask(self) -> None:
        self._steps.append(self._pool.submit(self._epochs.step, self._next))
        self._next += 1

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> list[Batch]:
        if not self._steps:
            raise StopIteration
        batches = self._steps[0].result()  # it stays where Ctrl-C comes while it is waited for
        self._steps.popleft()
        self._ask()
        return batches

    def close(self) -> None:
        self._steps.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

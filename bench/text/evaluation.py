"""Questions with four endings, as HellaSwag's: llm.c's evaluation files, batches of them, how many a model gets right.

The file is 256 little-endian int32 (magic 20240522, version 1, number of examples, bytes of the longest one, zeros) and
then uint16 for each example: 65535, its bytes, its number, the right ending, 4, and context and endings as a length and
so many tokens each.

A model's answer is the ending whose tokens have the smallest mean loss after the context (accuracy "norm" of HellaSwag;
Zellers et al. 2019, arXiv 1905.07830, scored as llm.c does).
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import cli
from bench.core.files import put
from bench.text.shards import HEADER_BYTES, HEADER_INTS
from bench.text.tokenizer import VOCABULARY, DataError, Tokenizer

MAGIC, VERSION, ENDINGS = 20240522, 1, 4
START = 65535  # of an example; no token
ABOUT = 6  # uint16 of an example before its context: start, bytes, number, label, endings, length of the context
AGAIN = "write it again with `python -m bench.data --hellaswag FILE.jsonl --out DIR`"


@dataclass(frozen=True)
class Example:
    """A question: token ids of its context and of its four endings, none of them empty, and which ending is right."""

    context: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]
    label: int


# ---- files -----------------------------------------------------------------------------------------------------------


def read(path: Path, vocabulary: int = VOCABULARY) -> list[Example]:
    """The examples of an evaluation file, all of it checked.

    Raises DataError, naming the file and the example, for what is missing, another file, cut off, too long, says of
    itself what it is not, or has a token that is not below `vocabulary`.
    """
    if not path.is_file():
        raise DataError(cli.no_such(path, "file", AGAIN))
    raw = path.read_bytes()
    head = np.frombuffer(raw[: len(raw) // 4 * 4][:HEADER_BYTES], dtype="<i4").tolist()
    if len(head) < HEADER_INTS or head[0] != MAGIC:
        raise DataError(f"{path}: not an evaluation file of llm.c (its magic is {MAGIC}); {AGAIN}")
    if head[1] != VERSION:
        raise DataError(f"{path}: version {head[1]} of the format, this program reads version {VERSION}; {AGAIN}")
    if len(raw) % 2:
        raise DataError(f"{path}: odd length of {len(raw):,} bytes; it was cut off, {AGAIN}")
    stream = np.frombuffer(raw, dtype="<u2", offset=HEADER_BYTES)
    examples: list[Example] = []
    at = longest = 0
    while len(examples) < head[2]:
        try:
            example, after = _parse(stream, at, len(examples), vocabulary)
        except _Damaged as error:
            raise DataError(f"{path}: example {len(examples):,}: {error}; {AGAIN}") from None
        examples.append(example)
        longest, at = max(longest, 2 * (after - at)), after
    if not examples:
        raise DataError(f"{path}: a header and no examples; {AGAIN}")
    if at != len(stream) or longest != head[3]:
        raise DataError(
            f"{path}: the header promises {head[2]:,} examples of at most {head[3]:,} bytes; the longest has "
            f"{longest:,}, and {2 * (len(stream) - at):,} bytes follow; {AGAIN}"
        )
    return examples


class _Damaged(Exception):
    """What an example is not."""


def _parse(stream: np.ndarray, at: int, number: int, vocabulary: int) -> tuple[Example, int]:
    """The example that begins at `at`, and where the next one does."""
    if at + ABOUT > len(stream):
        raise _Damaged("the file ends before it")
    start, size, said, label, endings, _ = stream[at : at + ABOUT].tolist()
    if (start, said) != (START, number) or size % 2:
        raise _Damaged(f"begins with {start}, {size}, {said} in place of {START}, its bytes and its number")
    if endings != ENDINGS or label >= ENDINGS:
        raise _Damaged(f"{endings} endings, of which {label} is right; there should be {ENDINGS}, counted from 0")
    body = stream[at + ABOUT - 1 : at + size // 2]
    if at + size // 2 > len(stream):
        raise _Damaged("the file ends within it")
    parts: list[tuple[int, ...]] = []
    read = 0
    while read < len(body) and len(parts) <= ENDINGS:
        length = int(body[read])
        part = body[read + 1 : read + 1 + length]
        if not 0 < length == len(part):
            raise _Damaged(f"part {len(parts)} of it should have {length} tokens, and there are {len(part)}")
        if (largest := int(part.max())) >= vocabulary:
            raise _Damaged(f"token {largest}, but the vocabulary has {vocabulary:,}")
        parts.append(tuple(part.tolist()))
        read += 1 + length
    if len(parts) != 1 + ENDINGS or read != len(body):
        raise _Damaged(f"its {size} bytes are not a context and {ENDINGS} endings")
    return Example(parts[0], tuple(parts[1:]), label), at + size // 2


def write(path: Path, examples: list[Example]) -> None:
    """Write an evaluation file, whole or not at all. DataError for what the format has no room for."""
    if not 0 < len(examples) <= START:
        raise DataError(f"{path}: {len(examples):,} examples; the format takes 1 to {START:,}")
    pieces = []
    for number, example in enumerate(examples):
        parts = (example.context, *example.endings)
        size = 2 * (ABOUT - 1 + sum(1 + len(part) for part in parts))
        if len(example.endings) != ENDINGS or not 0 <= example.label < ENDINGS or not all(parts) or size > START:
            raise DataError(
                f"{path}: example {number:,} does not fit the format: it takes {ENDINGS} endings, one of them right, "
                f"no empty part, and {START:,} bytes in all"
            )
        stream = [START, size, number, example.label, ENDINGS]
        for part in parts:
            stream += [len(part), *part]
        pieces.append(np.array(stream, dtype="<u2").tobytes())
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(examples), max(map(len, pieces))
    put(path, header.tobytes() + b"".join(pieces))


# ---- the public data -------------------------------------------------------------------------------------------------


def from_jsonl(path: Path, using: Tokenizer) -> list[Example]:
    """The examples of HellaSwag's JSON lines (github.com/rowanz/hellaswag): `ctx`, four `endings`, and `label`.

    An ending is encoded with the space before it that a word begins with in GPT-2's vocabulary, as llm.c does. Raises
    DataError, naming the line, for one that is not such an example; of the test split, which has no labels, each is.
    """
    return _encoded(_lines(path), using)


def _encoded(told: list[tuple[str, list[str], int]], using: Tokenizer) -> list[Example]:
    encode = using.encoding.encode_ordinary
    return [
        Example(tuple(encode(context)), tuple(tuple(using.going_on(e)) for e in endings), label)
        for context, endings, label in told
    ]


def _lines(path: Path) -> list[tuple[str, list[str], int]]:
    """Context, endings and label of each line."""
    if not path.is_file():
        raise DataError(cli.no_such(path, "file", "give HellaSwag's JSON lines (hellaswag_val.jsonl)"))
    told = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # and not at U+2028, which JSON leaves as it is
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; give HellaSwag's JSON lines (hellaswag_val.jsonl)") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told.append(_fields(json.loads(line)))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(
                f'{path}:{number}: not an example of HellaSwag with its answer ("ctx", four "endings", "label" 0 to 3)'
            ) from None
    if not told:
        raise DataError(f"{path}: no examples; give HellaSwag's JSON lines (hellaswag_val.jsonl)")
    return told


def _fields(said: Any) -> tuple[str, list[str], int]:
    """Context, endings and label of a line. ValueError, TypeError or KeyError where it has none."""
    context, endings, label = said["ctx"], said["endings"], said["label"]
    if isinstance(label, bool) or (isinstance(label, float) and not label.is_integer()):
        raise ValueError
    label = int(label)  # the Hub's copy has it as text
    texts = isinstance(endings, list) and all(isinstance(text, str) for text in [context, *endings])
    if not texts or not context or len(endings) != ENDINGS or not 0 <= label < ENDINGS:
        raise ValueError
    return context, endings, label


def convert(path: Path, tokenizer: Callable[[], Tokenizer], out: Path) -> dict:
    """Write HellaSwag's JSON lines as an evaluation file, and beside it what it is, as a .json of the same name.

    Returns what that says: the tokenizer's name and fingerprint among others, for losses of a model that was trained
    with another one mean nothing. tokenizer: asked once the lines are read, for it may have to be trained first.
    """
    told, using = _lines(path), tokenizer()
    examples = _encoded(told, using)
    write(out, examples)
    about = {
        "source": f"file {path.name}",
        "examples": len(examples),
        "tokens": sum(len(e.context) + sum(map(len, e.endings)) for e in examples),
        "longest_tokens": max(len(e.context) + max(map(len, e.endings)) for e in examples),
        "tokenizer": using.name,
        "tokenizer_sha256": using.fingerprint(),
    }
    put(out.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    return about


def need_tokenizer(path: Path, fingerprint: str) -> None:
    """DataError where what is beside an evaluation file says that it was encoded with another tokenizer than that of
    the data (`Tokenizer.fingerprint`, `Decoder.fingerprint`). A file that says nothing, as llm.c's, is taken."""
    try:
        said = json.loads(path.with_suffix(".json").read_text())["tokenizer_sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if said != fingerprint:
        raise DataError(
            f"{path}: encoded with another tokenizer than the data, so its answers would mean nothing; write it again: "
            "python -m bench.data --hellaswag FILE.jsonl --vocab DATA/tokenizer.bin --out DIR"
        )


# ---- asking a model --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A batch of rows, each a context and one ending: tokens and targets (B, T) int64, and which targets count, bool.

    `rows` says of each row which example and which ending it is; rows after the last are zeros, of which none counts.
    """

    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray
    rows: tuple[tuple[int, int], ...]


def batches(examples: list[Example], B: int, T: int, rank: int = 0, ranks: int = 1) -> Iterator[Asked]:
    """Every ending of every example after its context, in order, B rows of T tokens at a time.

    What is longer than T + 1 tokens loses its beginning: the context's, and then the ending's. Examples have turns with
    the ranks; a rank whose rows end earlier gets batches in which nothing counts, so that all have the same number.
    """
    longest = -(-len(examples) // ranks) * ENDINGS
    rows = [(number, ending) for number in range(rank, len(examples), ranks) for ending in range(ENDINGS)]
    for first in range(0, longest, B):
        x, y = (np.zeros((B, T), dtype=np.int64) for _ in range(2))
        mask = np.zeros((B, T), dtype=bool)
        here = rows[first : first + B]
        for b, (number, ending) in enumerate(here):
            after = examples[number].endings[ending]
            tokens = (*examples[number].context, *after)[-(T + 1) :]
            n = len(tokens) - 1
            x[b, :n], y[b, :n] = tokens[:-1], tokens[1:]
            mask[b, max(n - len(after), 0) : n] = True
        yield Asked(x, y, mask, tuple(here))


@dataclass
class Tally:
    """What a model's losses say of its answers; add each batch's, then read `right` of `asked`."""

    examples: list[Example]
    means: dict[int, dict[int, float]] = field(default_factory=dict)  # by example and ending

    def add(self, batch: Asked, losses: np.ndarray) -> list[float]:
        """Cross-entropy of each target, (B, T), as a forward pass over `batch` gives it; the mean of each ending."""
        found = []
        for b, (number, ending) in enumerate(batch.rows):
            mean = float(np.asarray(losses[b], dtype=np.float64)[batch.mask[b]].mean())
            self.means.setdefault(number, {})[ending] = mean
            found.append(mean)
        return found

    @property
    def asked(self) -> int:
        """Examples of which all endings were added."""
        return sum(len(means) == ENDINGS for means in self.means.values())

    @property
    def right(self) -> int:
        """Examples whose right ending has the smallest mean loss, the first of equals; with a NaN none is right."""
        return sum(self._answer(means) == self.examples[number].label for number, means in self.means.items())

    @staticmethod
    def _answer(means: dict[int, float]) -> int | None:
        if len(means) < ENDINGS or any(map(math.isnan, means.values())):
            return None
        return min(range(ENDINGS), key=means.__getitem__)

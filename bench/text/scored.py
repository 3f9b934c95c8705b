"""llama2.c's tokenizer.bin: pieces with scores, of which the best neighbours are merged; text to ids and back.

The file (karpathy/llama2.c, tokenizer.py, `export`): little-endian uint32, the bytes of the longest piece; then for
each id a float32 score, a uint32 length and the piece's bytes. How many there are is not said: they end with the file.
Ids 0, 1, 2 are <unk>, the beginning and the end of a text; 3 to 258 are single bytes, written <0x0A>.
"""

import hashlib
import heapq
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.cli import CannotGoOn, no_such
from bench.core.files import cannot_write, put
from bench.text.tokenizer import DataError

BEGIN, END, FIRST_BYTE = 1, 2, 3
BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
NEVER = -1e10  # a score that is not above it does not merge
LONGEST = 1 << 16  # bytes of a piece; a damaged length is more
UNKNOWN = "�".encode()  # of ids that are no piece at all, as a model's padded rows


@dataclass(frozen=True)
class Scored:
    """Pieces by id, and how much each is wanted. `longest`: the file's own first number, kept as it was."""

    name: str
    pieces: tuple[bytes, ...]
    scores: tuple[float, ...]  # fp32
    longest: int

    begin = (BEGIN,)
    end = END

    @property
    def size(self) -> int:
        return len(self.pieces)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Of pieces that stand twice the first counts."""
        return {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}

    def content(self) -> bytes:
        """Of the file."""
        parts = [struct.pack("<I", self.longest)]
        for piece, score in zip(self.pieces, self.scores, strict=True):
            parts.append(struct.pack("<fI", score, len(piece)) + piece)
        return b"".join(parts)

    def fingerprint(self) -> str:
        """sha256 of the file: equal fingerprints, equal ids."""
        return hashlib.sha256(self.content()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the one for its beginning. As run.c's encode: a space goes before it (where that is a
        piece: run.c takes no text otherwise), characters that are no piece become bytes, and the neighbours whose join
        has the best score are merged, the leftmost first, until none can be. Raises DataError for a byte that has no
        piece."""
        if not text:
            return []
        found = []
        for character in " " + text if b" " in self.ids else text:
            raw = character.encode(errors="surrogateescape")
            known = self.ids.get(raw)
            found += [known] if known is not None else [self._byte(b) for b in raw]
        return self._merged(found)

    def _byte(self, value: int) -> int:
        i = value + FIRST_BYTE
        if i >= self.size or self.pieces[i].upper() != b"<0X%02X>" % value:
            raise DataError(f"{self.name}: no token for the byte 0x{value:02x}, and the text has one")
        return i

    def _merged(self, ids: list[int]) -> list[int]:
        """A heap of what can be joined, best score and leftmost first; what has changed since is passed over."""
        after = [*range(1, len(ids)), -1]
        before = list(range(-1, len(ids) - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            if left >= 0 and (right := after[left]) >= 0:
                joined = self.ids.get(self.pieces[ids[left]] + self.pieces[ids[right]])
                if joined is not None and self.scores[joined] > NEVER:
                    heapq.heappush(heap, (-self.scores[joined], left, ids[left], ids[right], joined))

        for i in range(len(ids)):
            offer(i)
        while heap:
            _, left, a, b, joined = heapq.heappop(heap)
            right = after[left]
            if ids[left] != a or right < 0 or ids[right] != b:
                continue
            ids[left], ids[right], after[left] = joined, -1, after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left])
            offer(left)
        return [i for i in ids if i >= 0]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; beginnings and ends are left out, and the space that a text begins with after one. Bytes
        that are no UTF-8, and ids that are no piece's, become U+FFFD. (run.c leaves bytes out that cannot be shown.)"""
        out, last = [], None
        for i in ids:
            if i not in (BEGIN, END):
                piece = self.pieces[i] if 0 <= i < self.size else UNKNOWN
                byte = BYTE.fullmatch(piece)
                out.append(bytes([int(byte[1], 16)]) if byte else piece[last == BEGIN and piece[:1] == b" " :])
            last = i
        return b"".join(out).decode(errors="replace")


def of_pieces(name: str, pieces: Iterable[bytes], scores: Iterable[float]) -> Scored:
    """From pieces and scores, which are rounded to fp32 as the file has them."""
    kept = tuple(pieces)
    rounded = tuple(struct.unpack("<f", struct.pack("<f", s))[0] for s in scores)
    return Scored(name, kept, rounded, max(map(len, kept)))


def of_bytes(v: int) -> Scored:
    """Byte tokens alone, for a model of `v` tokens: byte b is b + 3, ids beyond them are not used. DataError below 259.

    run.c goes on from a text's beginning with it; for a prompt it wants a piece of one space, which is not here.
    """
    if v < FIRST_BYTE + 256:
        raise DataError(f"{v} tokens are too few for bytes, which take {FIRST_BYTE + 256}")
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    unused = [b"<unused%d>" % i for i in range(v - len(pieces))]
    return of_pieces("bytes", [*pieces, *unused], [0.0] * len(pieces) + [2 * NEVER] * len(unused))


def is_one(path: Path) -> bool:
    """Whether a file may be a tokenizer.bin, by its first number."""
    with path.open("rb") as file:
        raw = file.read(4)
    return len(raw) == 4 and 0 < struct.unpack("<I", raw)[0] <= LONGEST


def read_tokenizer(path: Path, v: int | None = None) -> Scored:
    """The pieces of a tokenizer.bin; with `v`, of a model with so many tokens.

    Raises DataError, naming the file, for one that is missing, cut off, damaged, another file, or of another size.
    """
    if not path.is_file():
        raise DataError(no_such(path, "tokenizer file"))
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(raw) < 12:
        raise DataError(f"{path}: {len(raw)} bytes are no tokenizer of llama2.c's")
    (longest,) = struct.unpack_from("<I", raw)
    if not 0 < longest <= LONGEST:
        raise DataError(f"{path}: not llama2.c's tokenizer file: its longest token would have {longest:,} bytes")
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(raw):
        i = len(pieces)
        if at + 8 > len(raw):
            raise DataError(f"{path}: cut off in token {i}, or not llama2.c's tokenizer file")
        score, length = struct.unpack_from("<fI", raw, at)
        if not 0 < length <= longest or not math.isfinite(score):
            raise DataError(
                f"{path}: token {i} has {length:,} bytes (the longest: {longest}) and the score {score:g}: damaged, or "
                "not llama2.c's tokenizer file"
            )
        if at + 8 + length > len(raw):
            raise DataError(f"{path}: cut off in token {i}, or not llama2.c's tokenizer file")
        pieces.append(raw[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    if v is not None and len(pieces) != v:
        raise DataError(f"{path}: {len(pieces):,} tokens, and the model has {v:,}: cut off, or another model's")
    return Scored(f"llama2.c's tokenizer ({path.name})", tuple(pieces), tuple(scores), longest)


def write_tokenizer(path: Path, scored: Scored) -> None:
    """Write a tokenizer.bin, whole or not at all. CannotGoOn where a file is there, or it cannot be written; DataError
    for an empty piece."""
    if path.exists():
        raise CannotGoOn(f"{path}: it is there, and stays; take another name")
    if empty := [i for i, piece in enumerate(scored.pieces) if not piece]:
        raise DataError(f"{path}: token {empty[0]} is empty, which the format has no room for")
    try:
        put(path, scored.content())
    except OSError as error:
        raise cannot_write(path, error) from error

"""Token ids back to text, and the file that says how: llm.c's tokenizer .bin, which lies beside the shards, or, where
they were made with llama2.c's, that (bench/text/scored.py).

llm.c's file is 256 little-endian int32 (magic 20240328, version, number of tokens, in version 2 the id of
<|endoftext|>, zeros) and then for each id one byte of length and the token's bytes.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import tiktoken

from bench import cli
from bench.core.files import put
from bench.text import scored
from bench.text.scored import Scored
from bench.text.shards import HEADER_BYTES, HEADER_INTS
from bench.text.tokenizer import (
    END_OF_TEXT,
    DataError,
    Tokenizer,
    byte_ranks,
    llama_bytes,
    rank_lines,
    whole_ranks,
)

MAGIC, VERSION = 20240328, 2
MOST_IN_SHARDS = 1 << 16  # ids: a shard's tokens are uint16
LONGEST = 255  # bytes of a token: its length is one byte
UNASSIGNED = b"<|unassigned|>"  # of ids that a small vocabulary does not use; llm.c wants bytes for every id
UNKNOWN = "�"  # of ids that are no token at all, as a model's padded rows


@dataclass(frozen=True)
class Decoder:
    """The bytes of every token. `name` says where they are from, and is shown with what was decoded."""

    name: str
    tokens: tuple[bytes, ...]
    end_of_text: int = END_OF_TEXT
    version: int = VERSION  # of the file it was read from, so that it is written again as it was

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; what is not UTF-8 becomes U+FFFD, and so does an id that is no token's."""
        known = len(self.tokens)
        return b"".join(self.tokens[i] if 0 <= i < known else UNKNOWN.encode() for i in ids).decode(errors="replace")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, which is split as GPT-2 does."""
        return Tokenizer.of_ranks(self.name, self.ranks()).encoding.encode_ordinary(text)

    def fingerprint(self) -> str:
        """That of the `Tokenizer` with the same tokens: what about.json has as tokenizer_sha256."""
        return hashlib.sha256(rank_lines(self.ranks())).hexdigest()

    def ranks(self) -> dict[bytes, int]:
        """Every token's id but for special ones: with these text is encoded."""
        return {t: i for i, t in enumerate(self.tokens) if i != self.end_of_text and t != UNASSIGNED}


@dataclass(frozen=True)
class ScoredDecoder(Decoder):
    """llama2.c's pieces: a text begins with <s>."""

    scored: Scored = field(kw_only=True)

    def decode(self, ids: list[int]) -> str:
        return self.scored.decode(ids)

    def encode(self, text: str) -> list[int]:
        return [*self.scored.begin, *self.scored.encode(text)]

    def fingerprint(self) -> str:
        return self.scored.fingerprint()


class _Encoding:
    """What is asked here of tiktoken's, of pieces."""

    def __init__(self, pieces: Scored):
        self.encode_ordinary = pieces.encode


@dataclass(frozen=True)
class ScoredTokenizer(Tokenizer):
    """Text to llama2.c's pieces; <s> stands between two texts."""

    scored: Scored = field(kw_only=True)

    @classmethod
    def of(cls, pieces: Scored) -> "ScoredTokenizer":
        encoding = cast(tiktoken.Encoding, _Encoding(pieces))
        return cls(pieces.name, encoding, scored.BEGIN, pieces.size, scored=pieces)

    def ranks(self) -> dict[bytes, int]:
        return self.scored.ids

    def going_on(self, text: str) -> list[int]:
        return self.scored.encode(text)  # which puts the space there

    def fingerprint(self) -> str:
        return self.scored.fingerprint()


def decoder_of(using: Tokenizer) -> Decoder:
    """The decoder of an encoding; ids that it does not use are told apart."""
    if isinstance(using, ScoredTokenizer):
        return _scored_decoder(using.scored)
    tokens = [UNASSIGNED] * using.vocabulary
    for token, rank in using.ranks().items():
        tokens[rank] = token
    tokens[using.end_of_text] = using.encoding.decode_single_token_bytes(using.end_of_text)
    return Decoder(using.name, tuple(tokens), using.end_of_text)


def _scored_decoder(pieces: Scored) -> Decoder:
    return ScoredDecoder(pieces.name, pieces.pieces, scored.BEGIN, scored=pieces)


def encoding_of(path: Path) -> Tokenizer:
    """The encoding that a tokenizer .bin implies: llama2.c's pieces, Llama's bytes, or a byte-level BPE, whose ranks
    are its ids and which splits text as GPT-2 does.

    Raises DataError as `read_tokenizer` does, and for what is no such vocabulary.
    """
    decoder = read_tokenizer(path)
    if isinstance(decoder, ScoredDecoder):
        if decoder.scored.size > MOST_IN_SHARDS:
            raise DataError(f"{path}: {decoder.scored.size:,} tokens, and shards have room for {MOST_IN_SHARDS:,}")
        return ScoredTokenizer.of(decoder.scored)
    if decoder.ranks() == byte_ranks():
        return llama_bytes()
    return Tokenizer.of_ranks(decoder.name, whole_ranks(path, decoder.ranks()))


def read_tokenizer(path: Path) -> Decoder:
    """The decoder that llm.c's tokenizer .bin holds, of version 1 or 2, or llama2.c's.

    Raises DataError, naming the file, for one that is missing, another file, cut off, too long, or has an empty token.
    """
    if not path.is_file():
        raise DataError(cli.no_such(path, "tokenizer file"))
    if scored.is_one(path):
        return _scored_decoder(scored.read_tokenizer(path))
    raw = path.read_bytes()
    head = np.frombuffer(raw[: len(raw) // 4 * 4][:HEADER_BYTES], dtype="<i4").tolist()
    if len(head) < HEADER_INTS or head[0] != MAGIC:
        raise DataError(f"{path}: not llm.c's tokenizer file (its magic is {MAGIC}), nor llama2.c's")
    version, count = head[1:3]
    end_of_text = {1: END_OF_TEXT, 2: head[3]}.get(version)
    if end_of_text is None:
        raise DataError(f"{path}: version {version} of the format, this program reads 1 and 2")
    if not 0 <= end_of_text < count:
        raise DataError(f"{path}: {count:,} tokens, and <|endoftext|> is said to be {end_of_text}; the file is damaged")
    tokens: list[bytes] = []
    at = HEADER_BYTES
    while len(tokens) < count and at < len(raw) and raw[at] and at + raw[at] < len(raw):
        tokens.append(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
    if len(tokens) < count or at < len(raw):
        raise DataError(
            f"{path}: the header promises {count:,} tokens, the file holds {len(tokens):,} and "
            f"{len(raw) - at:,} bytes more; it was cut off or overwritten, copy it again"
        )
    return Decoder(f"tokenizer ({path.name})", tuple(tokens), end_of_text, version)


def write_tokenizer(path: Path, decoder: Decoder) -> None:
    """Write llm.c's tokenizer .bin, or llama2.c's for its pieces, whole or not at all. DataError for a token that the
    format has no room for."""
    if isinstance(decoder, ScoredDecoder):
        scored.write_tokenizer(path, decoder.scored)
        return
    for i, token in enumerate(decoder.tokens):
        if not 0 < len(token) <= LONGEST:
            raise DataError(f"{path}: token {i} has {len(token)} bytes, the format takes 1 to {LONGEST}")
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, decoder.version, len(decoder.tokens)
    if decoder.version > 1:
        header[3] = decoder.end_of_text
    put(path, header.tobytes() + b"".join(bytes([len(token)]) + token for token in decoder.tokens))

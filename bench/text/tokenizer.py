"""Text to token ids, never with the network. A model says which kind of tokens it takes (`Model.tokenizer`):

gpt2    GPT-2's encoding where its vocabulary is at hand, else a trained one. Both have 50,257 ids, 50256 of which is
        <|endoftext|>. The trained encoding is a byte-level BPE of the Python standard library's source; its ids differ
        from GPT-2's, and its name says so wherever it is shown.
bytes   the 256 tokens of single bytes that every Llama vocabulary has, where its own is not at hand
"""

import base64
import binascii
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import tiktoken
import tiktoken.load
import tokenizers
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from bench.cli import CannotGoOn, no_such
from bench.core.files import put

VOCABULARY = 50257
END_OF_TEXT = 50256
BEGIN_OF_TEXT, FIRST_BYTE = 1, 3  # Llama's <s>, and its token of byte 0
ENDS = {"gpt2": END_OF_TEXT, "bytes": BEGIN_OF_TEXT}  # what stands between two texts, by kind
KINDS = tuple(ENDS)


class DataError(CannotGoOn):
    """Tokens, text or a vocabulary that cannot be used; the message names the file and the way out."""


@dataclass(frozen=True)
class Tokenizer:
    """An encoding and where it came from."""

    name: str  # one honest line, shown with everything that was encoded
    encoding: tiktoken.Encoding
    end_of_text: int = END_OF_TEXT  # stands between two texts
    vocabulary: int = VOCABULARY  # ids, special ones included

    @classmethod
    def of_ranks(cls, name: str, ranks: dict[bytes, int]) -> "Tokenizer":
        """GPT-2's encoding with another vocabulary: the bytes of each token to its id."""
        return cls(name, _encoding(ranks))

    def ranks(self) -> dict[bytes, int]:
        """The id of each token's bytes, <|endoftext|> left out."""
        return self.encoding._mergeable_ranks

    def going_on(self, text: str) -> list[int]:
        """Ids of a text that goes on after a space."""
        return self.encoding.encode_ordinary(f" {text}")

    def fingerprint(self) -> str:
        """sha256 of the vocabulary: equal fingerprints, equal ids."""
        return hashlib.sha256(rank_lines(self.ranks())).hexdigest()


def gpt2_from_file(path: Path) -> Tokenizer:
    """GPT-2's encoding from a .tiktoken rank file: a line a token, base64 and rank."""
    return Tokenizer(f"GPT-2 vocabulary ({path.name})", _encoding(read_ranks(path)))


def gpt2_from_tiktoken_cache() -> Tokenizer | None:
    """GPT-2's encoding out of tiktoken's own cache folder; None where it is not there."""

    def refuse(address: str) -> bytes:
        raise FileNotFoundError(f"{address} is not in tiktoken's cache")

    # tiktoken fetches what its cache lacks, and waits without a time limit; this is the function that fetches.
    with mock.patch.object(tiktoken.load, "read_file", refuse):
        try:
            return Tokenizer("GPT-2 vocabulary (tiktoken's cache)", tiktoken.get_encoding("gpt2"))
        except FileNotFoundError:
            return None


def llama_bytes() -> Tokenizer:
    """Llama's tokens of single bytes: byte b is token b + 3, and <s>, 1, stands between two texts."""
    ranks = byte_ranks()
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<s>": BEGIN_OF_TEXT}
    )
    return Tokenizer("Llama's byte tokens, one a byte", encoding, BEGIN_OF_TEXT, FIRST_BYTE + len(ranks))


def byte_ranks() -> dict[bytes, int]:
    return {bytes([byte]): FIRST_BYTE + byte for byte in range(256)}


def trained(vocabulary: Path, corpus: str) -> Tokenizer:
    """The encoding that `train_to` left in `vocabulary`; `corpus` says what it was trained on."""
    return Tokenizer(
        f"50,257-token BPE trained on {corpus}; ids differ from GPT-2's", _encoding(read_ranks(vocabulary))
    )


def train_to(vocabulary: Path, texts: list[str]) -> None:
    """Train the BPE of `texts` (11 MB take about 6 s) and write it as a .tiktoken rank file."""
    put(vocabulary, rank_lines(train_bpe(texts, END_OF_TEXT)))


def train_bpe(texts: Iterable[str], size: int) -> dict[bytes, int]:
    """Byte-level BPE of `size` tokens with GPT-2's splitting rule: bytes of each token to its rank. Deterministic."""
    trainee = tokenizers.Tokenizer(BPE())
    trainee.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False)
    trainee.train_from_iterator(texts, trainer)
    byte_of = bytes_of_characters()
    return {bytes(byte_of[c] for c in token): rank for token, rank in trainee.get_vocab().items()}


def read_ranks(path: Path) -> dict[bytes, int]:
    """The ranks of a .tiktoken file; DataError unless it is a whole byte-level vocabulary with ids below 50256."""
    if not path.is_file():
        raise DataError(
            no_such(path, "vocabulary file", "--vocab takes a .tiktoken rank file (base64 and rank a line)")
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise DataError(f"{path}:{number}: not a line of a .tiktoken rank file (base64 and rank)") from None
    return whole_ranks(path, ranks)


def whole_ranks(path: Path, ranks: dict[bytes, int]) -> dict[bytes, int]:
    """`ranks`, read from `path`; DataError unless they are a whole byte-level vocabulary with ids below 50256."""
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise DataError(f"{path}: ranks have gaps or a byte is missing; the file is damaged, fetch it again")
    if len(ranks) > END_OF_TEXT:
        raise DataError(f"{path}: {len(ranks):,} tokens, GPT-2 has {END_OF_TEXT:,}; this is another model's vocabulary")
    return ranks


def digest(texts: list[str]) -> str:
    """sha256 of the texts and of where each ends."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def python_version() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"


def _encoding(ranks: dict[bytes, int]) -> tiktoken.Encoding:
    special = {"<|endoftext|>": END_OF_TEXT}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def rank_lines(ranks: dict[bytes, int]) -> bytes:
    ordered = sorted(ranks.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)


def bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE writes a byte as a character: itself where it is visible in Latin-1, else the next after 255."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}

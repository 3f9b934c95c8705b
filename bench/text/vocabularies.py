"""Whatever file of a tokenizer is given, text becomes ids with it, and ids text.

.tiktoken           GPT-2's ranks
.bin                llm.c's tokenizer (it has a magic number), or llama2.c's
tokenizer.json      Hugging Face's, read by the library `tokenizers`
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from bench import cli
from bench.text import scored
from bench.text.decoding import Decoder, decoder_of, read_tokenizer
from bench.text.tokenizer import (
    BEGIN_OF_TEXT,
    DataError,
    Tokenizer,
    byte_ranks,
    gpt2_from_file,
    gpt2_from_tiktoken_cache,
)

ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>")  # what a text ends with, in files that do not say which it is
NAMES = ("tokenizer.json", "tokenizer.bin", "gpt2_tokenizer.bin")  # that lie beside weights


class Codec(Protocol):
    """An encoding of text. Ids are below `size`; a text begins with the ids `begin`, and is over at the id `end`."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def begin(self) -> tuple[int, ...]: ...
    @property
    def end(self) -> int | None: ...
    def encode(self, text: str) -> list[int]:
        """Without the ids that begin a text. Raises DataError for what has no token."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Ranked:
    """Byte-level BPE, as GPT-2's, or Llama's tokens of single bytes: what a `Decoder` knows."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.name, self.size = decoder, decoder.name, len(decoder.tokens)
        bytes_alone = decoder.ranks() == byte_ranks()
        self.begin: tuple[int, ...] = (BEGIN_OF_TEXT,) if bytes_alone else ()
        self.end: int | None = decoder.end_of_text

    @cached_property
    def _encoding(self) -> Any:
        return Tokenizer.of_ranks(self.name, self.decoder.ranks()).encoding

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decoder.decode([i for i in ids if (i,) != self.begin])


class Fast:
    """A tokenizer.json of Hugging Face's. Raises DataError for what is none."""

    def __init__(self, path: Path):
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{path}: not a tokenizer.json of Hugging Face's ({error})") from None
        self._inner.no_truncation()
        self._inner.no_padding()
        self.name, self.size = f"tokenizer ({path.name})", self._inner.get_vocab_size()
        self.content: str = self._inner.to_str()  # JSON, whatever version the file was of
        self.begin: tuple[int, ...] = tuple(self._inner.encode("").ids)
        self.end = next((i for name in ENDS if (i := self._inner.token_to_id(name)) is not None), None)

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode([i for i in ids if 0 <= i < 1 << 32])


def open_tokenizer(path: Path, v: int | None = None) -> Codec:
    """The tokenizer of a file; with `v`, of a model with so many tokens. Raises DataError for a missing, damaged or
    foreign file, and for one with more tokens than the model."""
    if not path.is_file():
        raise DataError(cli.no_such(path, "tokenizer file"))
    found: Codec
    if path.suffix == ".json":
        found = Fast(path)
    elif path.suffix == ".tiktoken":
        found = Ranked(decoder_of(gpt2_from_file(path)))
    elif path.suffix == ".model":
        raise DataError(f"{path}: sentencepiece's file is not read; give a tokenizer.json or llama2.c's tokenizer.bin")
    elif path.suffix == ".bin" and not scored.is_one(path):
        found = Ranked(read_tokenizer(path))
    else:
        return scored.read_tokenizer(path, v)
    if v is not None and found.size > v:
        raise DataError(f"{path}: {found.size:,} tokens, and the model has {v:,}: another model's")
    return found


def tokenizer_in(folder: Path, v: int) -> Codec | None:
    """The tokenizer that lies in the folder of a model with `v` tokens, by NAMES; None where there is none."""
    for name in NAMES:
        if (folder / name).is_file():
            return open_tokenizer(folder / name, v)
    return None


def gpt2_at_hand() -> Codec | None:
    """GPT-2's, of tiktoken's cache; assumed, and its name says so."""
    found = gpt2_from_tiktoken_cache()
    if found is None:
        return None
    return Ranked(decoder_of(Tokenizer(f"{found.name}; assumed, for nothing beside the weights says", found.encoding)))

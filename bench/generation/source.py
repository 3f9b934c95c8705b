"""What a text is generated with: a model by name with random weights, or what a file holds; and its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from bench import cli
from bench.checkpoints import foreign
from bench.cli import CannotGoOn
from bench.models.inference import Quantised
from bench.text import corpus
from bench.text.decoding import Decoder, decoder_of
from bench.text.tokenizer import ENDS, DataError, Tokenizer
from reference.models import MODELS, Model
from reference.models.plain import init_parameters

MOST_SHOWN = 8  # ids in a message


@dataclass(frozen=True)
class Source:
    """`path`: the file or folder; None for random weights of `seed`."""

    model: Model
    path: Path | None
    seed: int


@dataclass(frozen=True)
class Weights:
    """By name; `quantised` ones are int8 with a scale for each `group` of a row."""

    named: Mapping[str, torch.Tensor]
    quantised: Mapping[str, Quantised] = field(default_factory=dict)
    group: int = 0


class Codec(Protocol):
    """Text to token ids and back. `begin`: ids that a text begins with; `end`: the id that ends one."""

    name: str
    begin: Sequence[int]
    end: int | None

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class Ranked:
    """A byte-level BPE as a Codec."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.name = decoder.name
        self.begin: Sequence[int] = ()
        self.end: int | None = decoder.end_of_text
        self.encoding = Tokenizer.of_ranks(decoder.name, decoder.ranks()).encoding

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self.decoder.decode(ids)


class Numbers:
    """Where nobody knows the tokenizer: ids are shown as they are."""

    name = "no tokenizer is known: tokens are numbers"

    def __init__(self, kind: str):
        self.begin: Sequence[int] = (ENDS[kind],)
        self.end: int | None = None

    def encode(self, text: str) -> list[int]:
        raise CannotGoOn("--prompt: which tokenizer the model has is not known; name it with --vocab, or give --tokens")

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def opened(what: str, seed: int) -> tuple[Source, Codec]:
    """A model's name, or a file or folder of weights. CannotGoOn, in one line, for what is neither."""
    path = Path(what)
    if what in MODELS or not path.exists():
        return Source(MODELS[cli.choose(what, MODELS, "model, and no file is there")], None, seed), of_kind(MODELS[what])
    model, _, codec = _read(path)
    return Source(model, path, seed), codec or Numbers(model.tokenizer)


def weights(source: Source) -> Weights:
    """All of the source's weights."""
    if source.path is None:
        return Weights(init_parameters(source.model, source.seed))
    return _read(source.path)[1]


def _read(path: Path) -> tuple[Model, Weights, Codec | None]:
    model, state = foreign.read_any(path)
    return model, Weights(state.weights), None


def of_kind(model: Model, vocab: Path | None = None) -> Codec:
    """The tokenizer of a model's kind that is at hand, or that of a file."""
    try:
        using = corpus.tokenizer(vocab, model.tokenizer)
    except DataError as error:
        raise CannotGoOn(str(error), cli.USAGE) from error
    return Ranked(decoder_of(using))


# --- prompts ---


def prompt_of(codec: Codec, text: str | None, model: Model) -> list[int]:
    """Ids of a prompt; without a text those that every text begins with. CannotGoOn for a token that the model lacks."""
    ids = [*codec.begin, *(codec.encode(text) if text else [])]
    if not ids:
        ids = [codec.end] if codec.end is not None and codec.end < model.v else [0]
    return known(ids, model, f"{codec.name} has")


def tokens_of(text: str, model: Model) -> list[int]:
    """Ids written as `1,42,7`. CannotGoOn for what is none, and for one that the model lacks."""
    try:
        ids = [int(entry) for entry in text.replace(",", " ").split()]
    except ValueError:
        raise CannotGoOn(f"--tokens {text!r}: ids are whole numbers, with commas between", cli.USAGE) from None
    if not ids:
        raise CannotGoOn("--tokens is empty", cli.USAGE)
    return known(ids, model, "--tokens has")


def known(ids: list[int], model: Model, whose: str) -> list[int]:
    if wrong := [i for i in ids if not 0 <= i < model.v]:
        told = ", ".join(map(str, wrong[:MOST_SHOWN]))
        raise CannotGoOn(f"{whose} token {told}: {model.name} knows 0 to {model.v - 1}", cli.USAGE)
    return ids


def need_room(prompt: int, steps: int | None, model: Model, usual: int) -> int:
    """How many tokens are generated after so many. CannotGoOn where the context has no room for them."""
    if prompt > model.max_t:
        raise CannotGoOn(
            f"the prompt has {prompt} tokens, and {model.name} sees {model.max_t}: make it shorter", cli.USAGE
        )
    room = model.max_t - prompt + 1  # the last token is drawn, and not read again
    if steps is not None and steps > room:
        raise CannotGoOn(
            f"--steps {steps}: after {prompt} tokens of a prompt {model.name}, which sees {model.max_t}, has room for {room}",
            cli.USAGE,
        )
    return steps or min(usual, room)

"""What a text is generated with: a model by name with random weights, or what a file holds; and its tokens."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import cli
from bench.checkpoints import foreign, llama2c
from bench.cli import CannotGoOn
from bench.models.inference import Quantised
from bench.text import corpus
from bench.text.decoding import decoder_of
from bench.text.tokenizer import ENDS
from bench.text.vocabularies import Codec, Ranked, open_tokenizer, tokenizer_in
from reference.models import MODELS, Model
from reference.models.plain import init_parameters

MOST_SHOWN = 8  # ids in a message


@dataclass(frozen=True)
class Weights:
    """By name; `quantised` ones are int8 with a scale for each `group` of a row."""

    named: Mapping[str, torch.Tensor]
    quantised: Mapping[str, Quantised] = field(default_factory=dict)
    group: int = 0


@dataclass(frozen=True)
class Source:
    """`path`: the file or folder; None for random weights of `seed`. group: of a file whose matrices are int8."""

    model: Model
    path: Path | None
    seed: int
    group: int = 0

    def weights(self) -> Weights:
        """All of them. CannotGoOn where the file is another one by now."""
        if self.path is None:
            return Weights(init_parameters(self.model, self.seed))
        if self.group:
            _, norms, quantised, group = llama2c.read_quantised(self.path)
            return Weights(norms, quantised, group)
        return Weights(foreign.open_weights(self.path)[1])


class Numbers:
    """Where nobody knows the tokenizer: ids are shown as they are."""

    name = "no tokenizer is known: tokens are numbers"
    end: int | None = None

    def __init__(self, model: Model):
        self.size = model.v
        self.begin: tuple[int, ...] = (ENDS[model.tokenizer],)

    def encode(self, text: str) -> list[int]:
        raise CannotGoOn(
            "--prompt: which tokenizer the model has is not known; name it with --vocab, or use --prompt-ids",
            cli.USAGE,
        )

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def opened(what: str, seed: int, vocab: Path | None, text: bool) -> tuple[Source, Codec]:
    """A model's name, or a file or folder of weights, and the tokenizer: of `vocab`, of what lies with the weights, or
    one of the model's kind that is at hand; where `text` is to be read one is made if need be.

    CannotGoOn, in one line, for what is neither a model nor a file, whole and of a known kind.
    """
    path = Path(what)
    if what not in MODELS and not path.exists() and (path.suffix or os.sep in what):  # no model's name is like that
        raise CannotGoOn(cli.no_such(path), cli.USAGE)
    if what in MODELS or not path.exists():
        model = MODELS[cli.choose(what, MODELS, "model or file")]
        return Source(model, None, seed), open_tokenizer(vocab, model.v) if vocab else _of_kind(model, text)
    if path.is_file() and path.suffix != ".safetensors" and llama2c.is_one(path):
        head = llama2c.head_of(path)  # says how it is kept, before all of it is read
        if head.version == 2:
            model, _, _, group = llama2c.read_quantised(path)
            found = open_tokenizer(vocab, model.v) if vocab else tokenizer_in(path.parent, model.v)
            return Source(model, path, seed, group), found or Numbers(model)
    model, _, found = foreign.open_weights(path, vocab)
    return Source(model, path, seed), found or Numbers(model)


def _of_kind(model: Model, text: bool) -> Codec:
    using = corpus.tokenizer_at_hand(model.tokenizer)
    if using is None and text:
        using = corpus.tokenizer(None, model.tokenizer)
    return Ranked(decoder_of(using)) if using else Numbers(model)


# --- prompts ---


def prompt_of(codec: Codec, text: str | None, model: Model) -> list[int]:
    """Ids of a prompt; without a text those that every text begins with. CannotGoOn for a token that the model
    lacks."""
    ids = [*codec.begin, *(codec.encode(text) if text else [])]
    if not text and not (ids and max(ids) < model.v):
        ids = [codec.end] if codec.end is not None and codec.end < model.v else [0]
    return known(ids, model, f"{codec.name} has")


def tokens_of(text: str, model: Model) -> list[int]:
    """Ids written as `1,42,7`. CannotGoOn for what is none, and for one that the model lacks."""
    try:
        ids = [int(entry) for entry in text.replace(",", " ").split()]
    except ValueError:
        raise CannotGoOn(f"--prompt-ids {text!r}: ids are whole numbers, with commas between", cli.USAGE) from None
    if not ids:
        raise CannotGoOn("--prompt-ids is empty", cli.USAGE)
    return known(ids, model, "--prompt-ids has")


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
            f"--steps {steps}: {model.name} sees {model.max_t}, which leaves {room} after a prompt of {prompt}",
            cli.USAGE,
        )
    return steps or min(usual, room)

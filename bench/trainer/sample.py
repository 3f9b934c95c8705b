"""Text from a model: one token after the other, each drawn from what the model expects after those before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bench.core.evidence import plain
from bench.models.step import Step
from bench.text.decoding import Decoder
from bench.text.tokenizer import ENDS


@dataclass(frozen=True)
class Draw:
    """How tokens are drawn: logits are divided by `temperature` (0: the likeliest token is taken), and only the `top_k`
    likeliest tokens take part (0: all do)."""

    temperature: float
    top_k: int

    def one(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """A token from its logits (V,), in fp32 on the CPU."""
        if self.temperature == 0:
            return int(logits.argmax())
        found, ids = logits.topk(min(self.top_k, len(logits))) if self.top_k else (logits, torch.arange(len(logits)))
        chances = torch.softmax(found / self.temperature, dim=0)
        return int(ids[torch.multinomial(chances, 1, generator=generator)])


def sample(
    step: Step, prompt: Sequence[int], count: int, draw: Draw, seed: int, check: Callable[[], None] = lambda: None
) -> list[int]:
    """`count` tokens that go on from `prompt` (at least one token). The same arguments, the same tokens.

    A whole forward pass for each of them, of the step's own size; the model sees the last T tokens at most. check: as
    in `evaluate`. Where logits are not finite the text ends.
    """
    mem = step.memory
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    tokens = torch.zeros(mem.B, mem.T, dtype=torch.int64)
    for _ in range(count):
        check()
        seen = ids[-mem.T :]
        tokens[0, : len(seen)] = torch.tensor(seen)
        logits = step.logits(tokens)[0, len(seen) - 1, : step.model.v].float().cpu()
        if not torch.isfinite(logits).all():
            break
        ids.append(draw.one(logits, generator))
    return ids[len(prompt) :]


class Texts:
    """Samples as text: with the tokenizer the data were made with, or as numbers where nobody knows it. kind: of the
    model's tokens."""

    def __init__(self, decoder: Decoder | None, kind: str = "gpt2"):
        self.decoder = decoder
        self.end_of_text = decoder.end_of_text if decoder else ENDS[kind]
        self.name = decoder.name if decoder else "no tokenizer is known: tokens are numbers"

    def prompt(self, text: str | None, vocabulary: int) -> list[int]:
        """Token ids of a prompt; without one the end of a text, after which another begins, if the model knows it."""
        if not text or self.decoder is None:
            return [self.end_of_text if self.end_of_text < vocabulary else 0]
        return self.decoder.encode(text)

    def text(self, ids: list[int]) -> str:
        """As a terminal may show it: tokens can spell what steers one."""
        return plain(self.decoder.decode(ids)) if self.decoder else " ".join(map(str, ids))

"""A text that is shown while it is written: whole characters only, and nothing that could steer a terminal.

It is a generation that nobody times, the first one of ours, whose tokens the host reads after each step. Timed rounds
tell nobody anything before they are over.
"""

from collections.abc import Callable, Sequence

from bench.core.evidence import plain
from bench.text.vocabularies import Codec

UNSURE = "\ufffd"  # what bytes without the rest of their character become


class Stream:
    """The prompts and what comes after them; called with each step's tokens, by sequence. The first text is shown as it
    comes, others behind it when all is over."""

    def __init__(self, codec: Codec, prompts: Sequence[Sequence[int]], write: Callable[[str], object]):
        self.codec, self.write = codec, write
        self.ids = [list(prompt) for prompt in prompts]
        self.lengths = [len(prompt) for prompt in prompts]
        self.over = [False] * len(prompts)
        self.shown = ""
        self._show(self._text(0))

    def __call__(self, tokens: Sequence[int]) -> None:
        for b, token in enumerate(tokens):
            self.over[b] = self.over[b] or token == self.codec.end
            if not self.over[b]:
                self.ids[b].append(token)
        self._show(self._text(0))

    def end(self) -> None:
        """Show what is left: bytes that became no character, and the other texts."""
        text = self._text(0)
        if not text.startswith(self.shown):  # a tokenizer that changed its mind
            self.write("\n---\n")
            self.shown = ""
        self.write(plain(text[len(self.shown) :]))
        self.write("".join(f"\n---\n{plain(self._text(b))}" for b in range(1, len(self.ids))) + "\n\n")

    def tokens(self) -> list[list[int]]:
        """What was drawn, by sequence, without the end of a text and what comes after it."""
        return [ids[length:] for ids, length in zip(self.ids, self.lengths, strict=True)]

    def _text(self, b: int) -> str:
        return self.codec.decode(self.ids[b])

    def _show(self, text: str) -> None:
        sure = text.rstrip(UNSURE)
        if sure.startswith(self.shown) and len(sure) > len(self.shown):
            self.write(plain(sure[len(self.shown) :]))
            self.shown = sure

"""What is seen of a text while it is written."""

import pytest

from bench.generation.stream import Stream
from bench.text import scored
from bench.text.vocabularies import Codec

BYTES: Codec = scored.of_bytes(300)


def ids(text: str | bytes) -> list[int]:
    return [3 + byte for byte in (text.encode() if isinstance(text, str) else text)]


def seen(written: list[int], prompts=((1,),), codec: Codec = BYTES) -> list[str]:
    """What is written after each token, and at the end."""
    out: list[str] = []
    stream = Stream(codec, prompts, out.append)
    steps = []
    for token in written:
        out.clear()
        stream([token] * len(prompts))
        steps.append("".join(out))
    out.clear()
    stream.end()
    return [*steps, "".join(out)]


@pytest.mark.parametrize("text", ["é", "☃x", "🙂🙂", "a\u0301"])
def test_characters_are_whole(text):
    """A character is written with its last byte, and nothing before."""
    steps = seen(ids(text))
    assert "".join(steps) == text + "\n\n"
    at = [len(text[: i + 1].encode()) for i in range(len(text))]
    assert [i + 1 for i, step in enumerate(steps[:-1]) if step] == at


def test_what_never_becomes_a_character_is_shown_with_what_follows_or_at_the_end():
    assert seen(ids(b"\xe2\x98A\xe2")) == ["", "", "\ufffdA", "", "\ufffd\n\n"]


def test_a_terminal_is_not_steered():
    assert "".join(seen(ids("\x1b[2Jx\x07y"))) == "[2Jx\ufffdy\n\n"


def test_the_first_text_comes_as_it_is_written_and_others_at_the_end():
    """Each to its own end; prompts are part of what is shown."""
    out: list[str] = []
    stream = Stream(BYTES, ((1, *ids("p")), (1, *ids("q"))), out.append)
    for pair in ("ax", "by", "cz"):
        stream([*ids(pair)] if pair != "by" else [ids("b")[0], 2])
    assert "".join(out) == "pabc"
    stream.end()
    assert "".join(out) == "pabc\n---\nqx\n\n"
    assert stream.tokens() == [ids("abc"), ids("x")]


def test_a_tokenizer_that_changes_what_it_said_is_shown_whole_in_the_end():
    class Joins:
        name, size, begin, end = "joins", 9, (), None

        def encode(self, text):
            return []

        def decode(self, ids):
            return "do not" if len(ids) < 3 else "don't"

    assert seen([1, 2], ((0,),), Joins()) == ["", "", "\n---\ndon't\n\n"]

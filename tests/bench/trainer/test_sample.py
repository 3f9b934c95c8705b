"""Tokens are drawn as they should be, and texts are those of the run's tokenizer."""

from typing import Any

import pytest
import torch

from bench import cli
from bench.text.decoding import Decoder, write_tokenizer
from bench.trainer.sample import Draw, Texts, sample
from tests import commands
from tests.bench.trainer import runs

LOGITS = torch.tensor([0.0, 1.0, 3.0, 2.0])


def share(draw: Draw, token: int, count: int = 1500) -> float:
    generator = torch.Generator().manual_seed(0)
    return sum(draw.one(LOGITS, generator) == token for _ in range(count)) / count


def test_chances_are_the_softmax_at_a_temperature():
    for temperature in (0.5, 1.0, 2.0):
        wanted = torch.softmax(LOGITS / temperature, 0)
        for token in range(4):
            assert share(Draw(temperature, 0), token) == pytest.approx(wanted[token].item(), abs=0.05)


def test_only_the_likeliest_take_part():
    wanted = torch.softmax(torch.tensor([3.0, 2.0]), 0)
    assert share(Draw(1.0, 2), 2) == pytest.approx(wanted[0].item(), abs=0.05)
    assert share(Draw(1.0, 2), 1) == share(Draw(1.0, 2), 0) == 0
    assert share(Draw(1.0, 99), 0) > 0  # more than there are: all


def test_without_temperature_it_is_the_likeliest():
    assert share(Draw(0.0, 0), 2, 10) == 1.0


class Counting:
    """A model that expects the next number after the last one it sees; B = 2, T = 4."""

    class Memory:
        B, T = 2, 4

    class Model:
        v = 10

    memory, model = Memory, Model

    def __init__(self):
        self.seen = []

    def logits(self, tokens):
        self.seen.append(tokens[0].tolist())
        following = torch.nn.functional.one_hot((tokens + 1) % 10, 16).float() * 9
        following[..., 12] = 99  # a padded column, which is no token
        return following


def test_a_text_longer_than_the_model_sees_its_end():
    model: Any = Counting()
    assert sample(model, [3], 9, Draw(0.0, 0), 0) == [4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert model.seen[0] == [3, 0, 0, 0]
    assert model.seen[3] == [3, 4, 5, 6]
    assert model.seen[-1] == [8, 9, 0, 1]


def test_the_same_seed_draws_the_same():
    model: Any = Counting()
    drawn = [sample(model, [3], 20, Draw(9.0, 0), seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_texts_without_a_tokenizer_are_numbers():
    texts = Texts(None)
    assert texts.text([3, 4]) == "3 4"
    assert texts.prompt("anything", 300) == [0]
    assert "no tokenizer is known" in texts.name


LETTERS = Decoder("letters", (*(bytes([i]) for i in range(256)), b"<|endoftext|>"), 256)


def test_texts_are_the_tokenizers():
    texts = Texts(LETTERS)
    assert texts.prompt(None, 300) == [256]
    assert texts.prompt("abc", 300) == [97, 98, 99]
    assert texts.text([104, 105]) == "hi"
    assert texts.text([*b"\x1b]0;mine\x07hi\x1b[2J"]) == "hi", "nothing that steers a terminal"


def test_a_run_is_sampled_from(tmp_path):
    """While it trains, and afterwards by bench.sample, with the tokenizer beside its data."""
    data, out = runs.shards(tmp_path / "data"), tmp_path / "run"
    write_tokenizer(data / "tokenizer.bin", LETTERS)
    options = ("--sample-every", 2, "--sample-tokens", 5, "--prompt", "ab", "--top-k", 3)
    done = runs.train(data, "--steps", 3, *options, "--out", out)
    assert done.returncode == cli.OK, done.stderr
    texts = {e["step"]: e["text"] for e in runs.told(out, "sample")}
    assert texts.keys() == {2, 3}
    assert all(text.startswith("ab") for text in texts.values())
    same = ("--prompt", "ab", "--top-k", 3, "--tokens", 5, "--threads", 1)
    done = commands.run("sample", out, *same, "--seed", 3)  # as the run drew at its third step
    assert done.returncode == cli.OK, done.stderr
    assert done.stdout.splitlines()[0] == texts[3].splitlines()[0]
    assert "after 3 steps; tokenizer (tokenizer.bin)" in done.stderr
    several = commands.run("sample", out / "checkpoints" / "step-00000003", *same, "--samples", 2)
    assert several.stdout.count("ab") >= 2


def test_what_is_no_run_is_one_line(tmp_path):
    done = commands.run("sample", tmp_path)
    assert done.returncode == cli.FAILED
    assert "no checkpoint is there, which bench.train leaves; of other weights bench.generate" in done.stderr


def test_a_text_ends_where_the_model_is_not_finite():
    model: Any = Counting()
    real = model.logits
    model.logits = lambda tokens: real(tokens) * (torch.nan if len(model.seen) == 2 else 1)
    assert sample(model, [3], 9, Draw(0.0, 0), 0) == [4]  # the second was not

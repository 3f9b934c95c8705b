"""A Llama trains, goes on and is sampled from as GPT-2 is, on tokens of its own kind."""

import shutil

import pytest

from bench import cli
from bench.text import corpus
from tests import commands
from tests.bench.trainer.runs import kept, losses, told

OPTIONS = (
    *("--kernels", "torch.eager", "--batch", 2, "--seq", 16, "--threads", 1, "--steps", 4, "--lr", 0.01),
    *("--recompute", "swiglu,rmsnorm", "--dtype", "bf16", "--checkpoint-every", 2),
)


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text that becomes shards in a cache of its own."""
    monkeypatch.setattr(corpus, "cache_dir", lambda: tmp_path / "cache")
    file = tmp_path / "text.txt"
    file.write_text("Fünf Lamas gehen spazieren. " * 100)
    return file


def test_a_run_from_text_goes_on_and_is_sampled_from(text, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    looks = ("--val-every", 4, "--sample-every", 4, "--sample-tokens", 3, "--prompt", "Lama")
    done = commands.run("train", "llama2-tiny", "--data", text, *OPTIONS, *looks, "--out", whole)
    assert done.returncode == cli.OK, done.stderr
    assert losses(whole)[4][0] < losses(whole)[1][0] and told(whole, "val")[-1]["loss"] > 0
    (sample,) = told(whole, "sample")
    assert sample["text"].startswith("Lama") and "tokenizer" in sample["tokenizer"]

    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / "step-00000004")
    done = commands.run("train", "--out", part, "--resume")
    assert done.returncode == cli.OK, done.stderr
    assert told(part, "resume")[-1]["step"] == 2 and kept(part, 4) == kept(whole, 4)

    done = commands.run("sample", part, "--tokens", 3, "--prompt", "Lama", "--threads", 1)
    assert done.returncode == cli.OK, done.stderr
    assert "llama2-tiny after 4 steps" in done.stderr and done.stdout.startswith("Lama")


def test_tokens_of_another_vocabulary_and_another_familys_options_are_refused(text, tmp_path):
    words = ("train", "llama2-tiny", "--data", tmp_path / "train.bin", "--out", tmp_path / "run")
    corpus.write_tokens(tmp_path / "train.bin", corpus.np.full(999, 512, dtype=corpus.np.uint16))
    done = commands.run(*words, "--kernels", "torch.eager", "--seq", 16)
    assert done.returncode == cli.FAILED and "token 512 at position 0" in done.stderr
    done = commands.run(*words, "--recompute", "gelu")
    assert done.returncode == cli.USAGE and "known: swiglu, rmsnorm" in done.stderr

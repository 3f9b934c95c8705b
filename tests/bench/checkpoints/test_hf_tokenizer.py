"""Tokenizers written for Hugging Face give the ids that ours give."""

import json
import os
import random
from pathlib import Path

import pytest

from bench import HOME
from bench.checkpoints.hf_tokenizer import files, merges_of, pieces_of
from bench.text import scored, tokenizer
from bench.text.decoding import decoder_of
from bench.text.tokenizer import Tokenizer, llama_bytes
from bench.text.vocabularies import Fast, Ranked, open_tokenizer
from tests.bench.checkpoints import llamas, states
from tests.bench.text.test_scored import as_run_c

TEST_DATA = Path(os.environ.get("LAYERBENCH_TEST_DATA", HOME.parent / "shared" / "data"))
GPT2 = TEST_DATA / "gpt2.tiktoken"
TEXT = "naïve ☃ — words and more words, an Änderung here\n  and there isn't 123 more \t"


def written(folder, codec, model):
    for name, content in files(codec, model).items():
        (folder / name).write_bytes(content)
    return open_tokenizer(folder / "tokenizer.json")


def texts(seed: int, letters: str) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(letters, k=length)) for length in range(1, 80, 4)]


@pytest.fixture(scope="module")
def small() -> Ranked:
    return Ranked(decoder_of(Tokenizer.of_ranks("small", tokenizer.train_bpe([TEXT * 9, "and words more"], 330))))


def llamas_own() -> scored.Scored:
    """Pieces as sentencepiece makes them: every one but characters is made of two others, and no score stands twice."""
    draw = random.Random(1)
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    merged: list[bytes] = []
    letters = [c.encode() for c in " wordsanme"]
    while len(merged) < 60:
        joined = draw.choice(letters + merged) + draw.choice(letters + merged)
        if joined not in merged and len(joined) < 9:
            merged.append(joined)
    scores = [0.0] * len(pieces) + [-1.0 - i for i in range(len(merged))] + [-1000.0 - i for i in range(len(letters))]
    return scored.of_pieces("made up", [*pieces, *merged, *letters], scores)


def test_gpt2s_kind_gives_the_same_ids(tmp_path, small):
    found = written(tmp_path, small, states.MODEL)
    for text in [TEXT, *texts(1, TEXT)]:
        assert found.encode(text) == small.encode(text)
        assert found.decode(small.encode(text)) == text
    assert found.end == small.end == 50256 and found.begin == ()
    vocabulary, merges = json.loads((tmp_path / "vocab.json").read_text()), (tmp_path / "merges.txt").read_text()
    assert merges.startswith("#version: 0.2\n") and len(merges.splitlines()) == len(vocabulary) - 256
    assert len(vocabulary) > 290 and all("".join(line.split()) in vocabulary for line in merges.splitlines()[1:])


@pytest.mark.slow  # all 50,000 merges are found again
@pytest.mark.skipif(not GPT2.exists(), reason="no gpt2.tiktoken in $LAYERBENCH_TEST_DATA or ../shared/data")
def test_gpt2s_own_vocabulary_gives_the_same_ids(tmp_path):
    given = open_tokenizer(GPT2, 50257)
    found = written(tmp_path, given, states.MODEL)
    merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert merges[1:5] == ["Ġ t", "Ġ a", "h e", "i n"] and len(merges) == 50001  # as in the file that OpenAI published
    for text in [TEXT, Path(__file__).read_text(), *texts(6, TEXT + "日本語𝄞'llve\r")]:
        assert found.encode(text) == given.encode(text) and found.decode(given.encode(text)) == text


def test_merges_are_found_again():
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bc": 4, b"abc": 5, b"cba": 6}
    assert list(merges_of(ranks)) == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c")]


def test_llamas_kind_gives_the_same_ids(tmp_path):
    given = llamas_own()
    found = written(tmp_path, given, llamas.MODEL)
    merged = 0
    for text in ["words and more", "é\n☃", *texts(2, " wordsanme  é"), *texts(3, "words")]:
        ids = given.encode(text)
        assert found.encode(text) == ids == as_run_c(given, text)
        assert found.decode([1, *ids]) == text
        merged += len(ids) < len(text)
    assert merged > 9 and found.begin == (1,) and found.end == 2 and found.size == given.size


@pytest.mark.parametrize("codec", [Ranked(decoder_of(llama_bytes())), scored.of_bytes(300)], ids=["llm.c", "llama2.c"])
def test_bytes_alone_give_the_same_ids(tmp_path, codec):
    found = written(tmp_path, codec, llamas.MODEL)
    for text in [TEXT, " a", "<s", *texts(4, TEXT)]:
        ids = codec.encode(text)
        assert found.encode(text) == ids == [b + 3 for b in text.encode()]
        assert found.decode([1, *ids]) == codec.decode([1, *ids]) == text
    assert found.begin == codec.begin == (1,) and found.size == 300


@pytest.mark.parametrize("given", [llamas_own(), scored.of_bytes(300)], ids=["pieces", "bytes"])
def test_llamas_kind_is_pieces_again(tmp_path, given):
    """For llama2.c and llama.cpp, of a folder of Hugging Face's: the same ids."""
    found = written(tmp_path, given, llamas.MODEL)
    again = pieces_of(found, given.size + 3)
    assert again and again.pieces[: given.size] == given.pieces and again.size == given.size + 3
    for text in ["words and more", "é\n☃", *texts(5, " wordsanme  é")]:
        assert again.encode(text) == found.encode(text) == given.encode(text)


def one_way_comes_last(merges: list) -> None:
    """Of a piece that is made in two ways."""
    made = ["".join(pair) for pair in merges]
    merges.append(merges.pop(next(i for i, piece in enumerate(made) if made.count(piece) > 1)))


def changed(path: Path, change) -> Fast:
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    return Fast(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["model"].update(byte_fallback=False),
        lambda said: said.update(normalizer=None),
        lambda said: said["model"]["vocab"].update({"<0x00>": 4, "<0x01>": 3}),
        lambda said: one_way_comes_last(said["model"]["merges"]),
    ],
    ids=["no bytes", "no space first", "bytes elsewhere", "two ranks"],
)
def test_another_kind_is_no_pieces(tmp_path, change):
    written(tmp_path, llamas_own(), llamas.MODEL)
    assert pieces_of(changed(tmp_path / "tokenizer.json", change), 400) is None


def test_gpt2s_kind_is_no_pieces(tmp_path, small):
    assert pieces_of(written(tmp_path, small, states.MODEL), 60000) is None


def test_what_cannot_be_said_there_is_not_written():
    assert files(None, llamas.MODEL) == {}
    half = scored.of_pieces("half", [*scored.of_bytes(259).pieces, b"\xc3"], [0.0] * 260)
    assert files(half, llamas.MODEL) == {}
    twice = scored.of_pieces("twice", [*scored.of_bytes(259).pieces, b"a", b"a"], [0.0] * 261)
    assert files(twice, llamas.MODEL) == {}


@pytest.mark.slow  # transformers takes seconds to import
def test_autotokenizer_loads_them(tmp_path, small, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    for name, codec, model in (("gpt2", small, states.MODEL), ("llama", llamas_own(), llamas.MODEL)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, codec, model)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        ids = [*codec.begin, *codec.encode("words and more")]
        assert theirs("words and more")["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == "words and more"
        assert theirs.eos_token_id == codec.end

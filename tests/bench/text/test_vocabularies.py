"""A tokenizer is told by its file, and whatever it is turns text into ids and back."""

import base64

import pytest

from bench.text import scored, tokenizer
from bench.text.decoding import decoder_of, write_tokenizer
from bench.text.tokenizer import DataError, Tokenizer, llama_bytes, rank_lines
from bench.text.vocabularies import gpt2_at_hand, open_tokenizer, tokenizer_in

TEXT = "naïve ☃ — words and more words\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-tiktoken"))


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.of_ranks("small", tokenizer.train_bpe([TEXT * 9], 300))


def test_every_file_of_a_tokenizer_is_opened(tmp_path, small):
    (tmp_path / "gpt2.tiktoken").write_bytes(rank_lines(small.ranks()))
    write_tokenizer(tmp_path / "llmc.bin", decoder_of(small))
    write_tokenizer(tmp_path / "bytes.bin", decoder_of(llama_bytes()))
    scored.write_tokenizer(tmp_path / "llama2c.bin", scored.of_bytes(259))
    sizes = {"gpt2.tiktoken": 50257, "llmc.bin": 50257, "bytes.bin": 259, "llama2c.bin": 259}
    found = {name: open_tokenizer(tmp_path / name) for name in sizes}
    for name, codec in found.items():
        ids = codec.encode(TEXT)
        assert codec.size == sizes[name] and codec.decode([*codec.begin, *ids]) == TEXT
        assert codec.begin == ((1,) if "gpt2" not in name and "llmc" not in name else ())
        assert name in codec.name or name == "bytes.bin"
    assert found["gpt2.tiktoken"].encode(TEXT) == found["llmc.bin"].encode(TEXT) == small.encoding.encode(TEXT)
    assert (found["llmc.bin"].end, found["bytes.bin"].end, found["llama2c.bin"].end) == (50256, 1, 2)
    assert found["bytes.bin"].encode("a") == [ord("a") + 3]
    with pytest.raises(DataError, match="50,257 tokens, and the model has 512"):
        open_tokenizer(tmp_path / "llmc.bin", 512)
    assert gpt2_at_hand() is None


def test_the_one_that_lies_in_a_folder_is_found(tmp_path, small):
    assert tokenizer_in(tmp_path, 50257) is None
    write_tokenizer(tmp_path / "gpt2_tokenizer.bin", decoder_of(small))
    found = tokenizer_in(tmp_path, 50257)
    assert found and found.size == 50257
    (tmp_path / "tokenizer.bin").write_bytes(b"no tokenizer, but a text")
    with pytest.raises(DataError, match=r"tokenizer\.bin: not llm\.c's tokenizer file .*nor llama2"):
        tokenizer_in(tmp_path, 50257)


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("tokenizer.json", b"{", "not a tokenizer.json of Hugging Face's"),
        ("tokenizer.json", b'{"model": 7}', "not a tokenizer.json of Hugging Face's"),
        ("tokenizer.json", b"\xff", "not a tokenizer.json of Hugging Face's"),
        ("tokenizer.model", b"\n\x0e\n\x05", "sentencepiece's file is not read"),
        ("t.bin", b"", "not llm.c's tokenizer file .*nor llama2.c's"),
        ("t.bin", b"\7\0\0\0", "4 bytes are no tokenizer"),
        ("t.tiktoken", base64.b64encode(b"a"), "not a line of a .tiktoken rank file"),
    ],
)
def test_what_is_no_tokenizer_is_told(tmp_path, name, raw, says):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=says) as error:
        open_tokenizer(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(DataError, match="no such tokenizer file"):
        open_tokenizer(tmp_path / "gone.bin")
